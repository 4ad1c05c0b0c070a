"""The shipped model: retraining gives the same one, every word is a token, any text round-trips."""

import random
import re

import pytest
import sentencepiece as spm

from posttrain_jax.data import chains, corpus, procedural, train_tiny_tokenizer

DATA = train_tiny_tokenizer.MODEL.read_bytes()
PROCESSOR = spm.SentencePieceProcessor(model_proto=DATA)
MIX = {kind: 1.0 for kind in corpus.KINDS}


def pieces_of(text):
    return [PROCESSOR.id_to_piece(i) for i in PROCESSOR.encode(text)]


def test_retraining_reproduces_the_shipped_file():
    assert train_tiny_tokenizer.train() == DATA


def test_size_and_special_ids():
    assert len(DATA) < 200_000 and PROCESSOR.vocab_size() == 656
    assert (PROCESSOR.pad_id(), PROCESSOR.unk_id(), PROCESSOR.eos_id()) == (0, 1, 2)
    assert PROCESSOR.id_to_piece(2) == chains.END
    assert sum(PROCESSOR.is_byte(i) for i in range(PROCESSOR.vocab_size())) == 256


@pytest.mark.parametrize(
    "text",
    [
        "<|user|>", "<|assistant|>", "<|system|>", "<think>", "</think>", "<answer>", "</answer>",
        *(f" #{i}" for i in range(1, 6)),
        *(f" {n}" for n in range(21)),
        *(f" {sign}{d}" for sign in "+-" for d in range(1, 10)),
        " AB", " AC", " AD", " BC", " BD", " CD", " A", " D", " gives", " 得", " Wait", "苹果",
        "还有几个", "抱歉", "。", "？",
    ],
)  # fmt: skip
def test_one_token(text):
    assert pieces_of(text) == [text.replace(" ", "▁")]


def test_every_word_of_corpus_and_tasks_is_one_token():
    texts = [text.removesuffix(chains.END) for text in corpus.documents(11, 4000, MIX)]
    tasks = {"arithmetic": 1, "word_problem": 1, "logic": 1, "chat": 1, "safety": 1}
    for row in procedural.examples(tasks, split="heldout", count=1500, seed=11):
        texts += [row["prompt"], row.get("chosen", ""), row.get("rejected", "")]
    word = re.compile(
        r"<[^>]*>| #\d[^\s#]?[A-Z0-9]{1,2}\b| ?[A-Za-z]+| ?[-+#]?\d+|[^\w\s]|[\u4e00-\u9fff]+"
    )
    for text in texts:
        ids = PROCESSOR.encode(text)
        assert not any(PROCESSOR.is_byte(i) or PROCESSOR.is_unknown(i) for i in ids), text
        pieces = [piece.replace("▁", " ") for piece in map(PROCESSOR.id_to_piece, ids)]
        assert " " not in pieces and "".join(pieces) == text
        latin = [w for w in word.findall(text) if re.search(r"[A-Za-z0-9]", w)]
        assert [p for p in pieces if re.search(r"[A-Za-z0-9]", p)] == latin


def test_held_out_words_all_occur_in_training_text():
    """A token that only held-out prompts use would be an untrained embedding."""
    texts = corpus.documents(12, 6000, MIX)
    known = {i for text in texts for i in PROCESSOR.encode(text.removesuffix(chains.END))}
    tasks = {"arithmetic": 1, "word_problem": 1, "logic": 1, "chat": 1, "safety": 1}
    for row in procedural.examples(tasks, split="heldout", count=1500, seed=12):
        unknown = set(PROCESSOR.encode(row["prompt"])) - known
        assert not unknown, (row["prompt"], [PROCESSOR.id_to_piece(i) for i in unknown])


def test_any_text_round_trips():
    rng = random.Random(0)
    texts = [
        "",
        " ",
        "  two  spaces ",
        "line\nbreak\ttab",
        "naïve 日本語 🙂 ▲",
        "Tom has 25 kittens",
    ]
    texts += ["".join(chr(rng.randrange(32, 0x2FFF)) for _ in range(20)) for _ in range(50)]
    for text in texts:
        if "▁" not in text:
            assert PROCESSOR.decode(PROCESSOR.encode(text)) == text


def test_pieces_encode_as_the_whole():
    """Prompt, then completion: no token crosses the marker, so prefixes are stable."""
    for row in procedural.examples({"chat": 1, "logic": 1}, split="train", count=100, seed=0):
        head = chains.render(row["prompt"], end=False)
        tail = row.get("solution") or row["chosen"]
        assert PROCESSOR.encode(head + tail) == PROCESSOR.encode(head) + PROCESSOR.encode(tail)
        thought, answer = tail.split("</think>")
        whole = PROCESSOR.encode(thought) + PROCESSOR.encode("</think>" + answer)
        assert whole == PROCESSOR.encode(tail)
