"""Rank files: families, special tokens, and what is refused; small ones by hand."""

import base64
import importlib
import json

import pytest

from posttrain_jax.data.tokenizer import check_vocabulary, load_tokenizer
from posttrain_jax.data.tokenizers.base import choose_pad
from posttrain_jax.data.tokenizers.tiktoken_families import FAMILIES

TOKENS = [*(bytes([b]) for b in range(256)), b"th", b"the", b" the", b"12", b"123", "好".encode()]


def rank_file(path, tokens=TOKENS):
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_small_file_by_hand(tmp_path):
    tokenizer = load_tokenizer(rank_file(tmp_path / "tokenizer.model"), family="llama3")
    # Numbers go in threes: "1234" is "123" and "4"; " the" is a token that no merge makes.
    assert tokenizer.encode("the the1234好") == [257, 258, 260, ord("4"), 261]
    qwen = load_tokenizer(rank_file(tmp_path / "a.tiktoken"), family="qwen")
    assert qwen.encode("the1234") == [257, *b"1234"]
    # "e" and a combining acute are one character in normal form C.
    assert qwen.encode("e\u0301") == list("é".encode()) != tokenizer.encode("e\u0301")
    assert tokenizer.eos_token == "<|eot_id|>" and tokenizer.eos_id == len(TOKENS) + 9
    assert tokenizer.encode("<|eot_id|>x") == [tokenizer.eos_id, ord("x")]
    assert tokenizer.vocab_size == len(TOKENS) + 256
    assert list(tokenizer.files()) == ["tokenizer.json"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_bytes(tokenizer.files()["tokenizer.json"])
    again = load_tokenizer(tmp_path / "out", eos="<|eot_id|>")
    assert again.hash == tokenizer.hash and again.markers == tokenizer.markers


def test_config_beside_it_names_the_special_tokens(tmp_path):
    added = {
        "262": {"content": "<|endoftext|>", "special": True},
        "263": {"content": "<|im_end|>", "special": True},
        "264": {"content": "<tool_call>", "special": False},
    }
    settings = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    rank_file(tmp_path / "qwen.tiktoken")
    tokenizer = load_tokenizer(tmp_path / "qwen.tiktoken", family="qwen")
    assert tokenizer.markers == {"<|endoftext|>": 262, "<|im_end|>": 263}
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (263, 262, 265)
    assert tokenizer.encode("<tool_call>") == [264]
    added["261"] = {"content": "<x>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"tokenizer_config.json: expected .* from 262 on .*<x>"):
        load_tokenizer(tmp_path / "qwen.tiktoken", family="qwen")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("IQ== 0\nIg==\n", "line 2: expected a base64 token and its rank, got b'Ig=='"),
        ("IQ== 0\nI$== 1\n", "line 2: expected a base64"),
        ("IQ== 0\nIg== 2\n", "expected the ranks 0 to 1, each once, got 2 tokens with ranks up to"),
        ("IQ== 0\nIg== 1\n", "expected a token for each byte"),
        (None, r"a known family: llama3 \(128000 ranks\).*got 262.*family='…'"),
    ],
)
def test_refusals_name_the_file(content, message, tmp_path):
    path = rank_file(tmp_path / "tokenizer.model")
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="got 'gpt5'"):
        load_tokenizer(rank_file(path), family="gpt5")


@pytest.mark.parametrize("number", [3, 4])
def test_llamas_special_tokens_are_the_packages(number, packaged):
    """Their tokenizer class, with tiktoken's encoder replaced by a recorder."""
    pytest.importorskip("tiktoken", reason="pip install tiktoken")
    packaged("llama-models", "tokenizer.py")
    try:
        module = importlib.import_module(f"llama_models.llama{number}.tokenizer")
    except ImportError as error:
        pytest.skip(f"llama-models needs {error.name}")
    theirs, family = module.Tokenizer.get_instance(), FAMILIES[f"llama{number}"]
    first = family.ranks
    ours = {text: first + i for i, text in enumerate(family.specials())}
    assert ours == theirs.special_tokens
    assert ours[family.eos] == theirs.eot_id and ours[family.pad] == theirs.pad_id


def test_harmonys_special_tokens_are_tiktokens(monkeypatch):
    public = pytest.importorskip("tiktoken_ext.openai_public", reason="pip install tiktoken")
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *a, **k: {})  # it would download
    theirs, family = public.o200k_harmony()["special_tokens"], FAMILIES["o200k_harmony"]
    ours = {text: family.ranks + i for i, text in enumerate(family.specials())}
    assert {text: i for text, i in theirs.items() if ours.get(text) != i} in (
        {},
        {"<|reserved_200018|>": 200018},  # some versions name this id twice
    )
    assert len(ours) == 1090


def test_padding_rule(tmp_path):
    names = {"<|a|>": 3, "<|b|>": 4, "<|reserved_0|>": 7, "<|right_pad_id|>": 9, "<scratchpad>": 1}
    assert choose_pad(tmp_path, 5, 4, None, names) == 5
    assert choose_pad(tmp_path, 4, 4, None, names) == 9  # the declared one is the eos
    assert choose_pad(tmp_path, None, 4, None, names) == 9
    del names["<|right_pad_id|>"]
    assert choose_pad(tmp_path, -1, 4, None, names) == 7
    del names["<|reserved_0|>"]
    assert choose_pad(tmp_path, None, 4, 1, names) == 3
    with pytest.raises(ValueError, match="no special token that can serve as padding"):
        choose_pad(tmp_path, None, 4, 3, {"<|a|>": 3, "<|b|>": 4})


def test_vocabulary_of_a_model(tmp_path):
    tokenizer = load_tokenizer(rank_file(tmp_path / "tokenizer.model"), family="llama3")
    check_vocabulary(tokenizer, 518, "config.json")
    check_vocabulary(tokenizer, 640, "config.json")
    with pytest.raises(ValueError, match=r"^model/config.json: expected .* 518 ids, got 517; '<"):
        check_vocabulary(tokenizer, 517, "model/config.json")
