"""Small tokenizers, trained on the spot."""

import io
import json

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
