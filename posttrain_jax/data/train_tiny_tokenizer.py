"""Train the tiny preset's SentencePiece model on the project's own corpus.

    python -m posttrain_jax.data.train_tiny_tokenizer

writes `posttrain_jax/data/tiny.model`. Every word of the procedural tasks and of the corpus is a
user-defined piece, so it is one token wherever it stands; English words, numbers, labels and
operations have the leading space inside the piece (`▁+5`), Chinese words have none. Other text
falls back to bytes (one token an ASCII letter): anything encodes, and decodes to itself.

`<|end|>` ends a turn: it is the model's end-of-sequence, a control piece, which SentencePiece
itself never makes from text (`load_tokenizer` does). No piece reaches across a role marker or a
tag, so a text encodes to the same tokens whole or cut at any of them.

The same words give the same file: no sampling, one thread, no paths in the model.
"""

import io
import re
from pathlib import Path

import sentencepiece as spm

from posttrain_jax.data import chains, corpus, procedural

MODEL = Path(__file__).with_name("tiny.model")
PAD = "<pad>"
MARKERS = (chains.USER, chains.ASSISTANT, chains.SYSTEM)
TAGS = (chains.THINK, chains.END_THINK, chains.ANSWER, chains.END_ANSWER)
ITEMS = tuple(chains.item(label, op) for label in chains.LABELS for op in chains.OPERATIONS)
CHINESE_WORDS = (
    *("请问", "计算", "是多少", "球在", "在哪", "还有几个", "有", "个", "得", "等等", "答案是"),
    *("小明", "小红", "小华", "小丽", "说出", "告诉我", "给我", "请", "能", "吗", "怎么", "教我"),
    *("我想", "现在", "今天", "在家", "好的", "抱歉", "我不能", "帮忙", "这样", "有害", "无害"),
    *("暴力", "温和", "所以", "人", "物"),
    *("我", "不知道", "和", "两种", "三种", "四种", "口诀", "列表", "水果", "动物", "颜色"),
    *("食物", "衣物", "苹果", "梨子", "桃子", "葡萄", "小猫", "小狗", "奶牛", "小鸟", "红色"),
    *("绿色", "蓝色", "粉色", "鸡蛋", "米饭", "面包", "热汤", "帽子", "大衣", "鞋子", "袜子"),
    *("杀掉", "烧掉", "砍掉", "击打", "画出", "找到", "看看", "帮助", "路人", "朋友", "邻居"),
    *("工人", "进程", "虫子", "杂草", "大树"),
)
"""Chinese is written without spaces: these are the words of the tasks' sentences."""
SPACED_CHINESE = (" 得", " 个", " 是多少")
FULL_WIDTH = "，。？：！"
DOCUMENTS = 4000
MULTIPLE = 16
"""The vocabulary is filled up to a multiple of this, so that a mesh can split it."""


def corpus_text() -> list[str]:
    """The texts to train on: the documents, and all of the tasks' prompts and replies."""
    texts = corpus.documents(0, DOCUMENTS, dict.fromkeys(corpus.KINDS, 1.0))
    for split in procedural.SPLITS:
        rows = procedural.examples(
            {"chat": 1.0, "safety": 1.0}, split=split, count=DOCUMENTS // 2, seed=0
        )
        for row in rows:
            texts += [chains.render(row["prompt"], row[side]) for side in ("chosen", "rejected")]
    return texts


def words(texts: list[str]) -> list[str]:
    """The English words of the texts, leading space included, in alphabetical order.

    Not by frequency: so the ids don't change when only the shares of the corpus do.
    """
    bare = re.compile("|".join(map(re.escape, (*MARKERS, *TAGS, chains.END, *ITEMS))))
    return sorted({w for t in texts for w in re.findall(r" ?[A-Za-z]+", bare.sub("\n", t))})


def pieces(texts: list[str]) -> list[str]:
    """All user-defined pieces in order, spaces written as SentencePiece does."""
    punctuation = [*".,:?!", *FULL_WIDTH]
    chosen = [*MARKERS, *TAGS, *chains.LABELS, *chains.NUMBERS, *chains.OPERATIONS]
    chosen += ITEMS
    chosen += [*punctuation, *words(texts), *SPACED_CHINESE, *CHINESE_WORDS]
    return [piece.replace(" ", "▁") for piece in dict.fromkeys([*chosen, " "])]


def train() -> bytes:
    """The serialised SentencePiece model."""
    texts = corpus_text()
    symbols = pieces(texts)
    size = 3 + len(symbols) + 256  # padding, unknown, end; bytes. No merges are left to learn
    spare = -size % MULTIPLE
    symbols += [f"<|reserved_{i}|>" for i in range(spare)]
    size += spare
    model = io.BytesIO()
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        user_defined_symbols=symbols,
        pad_id=0,
        unk_id=1,
        eos_id=2,
        bos_id=-1,
        pad_piece=PAD,
        eos_piece=chains.END,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    """Write the model beside this file and say how large it is."""
    data = train()
    MODEL.write_bytes(data)
    size = spm.SentencePieceProcessor(model_proto=data).vocab_size()
    print(f"{MODEL.name}: {size} pieces, {len(data):,} bytes")


if __name__ == "__main__":
    main()
