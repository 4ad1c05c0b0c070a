"""Streamed text: its parts put together are `decode` of all, and none holds half a character."""

import random

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from posttrain_jax.data.tokenizer import Stream, finish, load_tokenizer, push, stream_text


def byte_fallback_json(folder):
    """A tokenizer.json as Llama 2's: byte fallback, a space in front that decoding strips."""
    words = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "好"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {w: i for i, w in enumerate(words)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(
    scope="module", params=["tiny", "bpe", "unigram", "byte fallback", "mistral", "squeezed"]
)
def tokenizer(request, bpe_folder, sentencepiece_path, packaged, tmp_path_factory):
    if request.param == "byte fallback":
        folder = byte_fallback_json(tmp_path_factory.mktemp("json"))
        return load_tokenizer(folder, eos="</s>")
    if request.param == "mistral":
        return load_tokenizer(packaged("mistral-common", "data/tokenizer.model.v1"))
    if request.param == "squeezed":  # drops every space at the start
        return load_tokenizer(packaged("seqio", "sentencepiece/sentencepiece.model"))
    return load_tokenizer(
        {"tiny": "tiny", "bpe": bpe_folder, "unigram": sentencepiece_path}[request.param]
    )


@pytest.mark.parametrize("skip_special", [False, True])
def test_parts_make_the_whole_for_any_tokens(tokenizer, skip_special):
    rng = random.Random(1)
    special = [*tokenizer.markers.values(), *tokenizer.encode(" "), *tokenizer.encode("é好🙂")]
    for _ in range(300):
        ids = [
            rng.choice(special) if rng.random() < 0.3 else rng.randrange(tokenizer.vocab_size)
            for _ in range(rng.randint(1, 30))
        ]
        parts = list(stream_text(tokenizer, ids, skip_special=skip_special))
        assert "".join(parts) == tokenizer.decode(ids, skip_special=skip_special), ids
        assert all(parts)


def test_no_half_characters_and_nothing_late(tokenizer, fuzz_texts):
    for text in fuzz_texts[::5]:
        ids = tokenizer.encode(text)
        whole = tokenizer.decode(ids)
        if "\ufffd" in whole:
            continue
        state, said = Stream(), ""
        for n, token in enumerate(ids, 1):
            state, part = push(tokenizer, state, token)
            assert "\ufffd" not in part
            said += part
            if token not in tokenizer.open_ids:  # all that is complete is out
                assert said == tokenizer.decode(ids[:n]).rstrip("\ufffd")
        assert said + finish(tokenizer, state) == whole


def test_a_character_over_four_tokens_comes_at_once():
    tokenizer = load_tokenizer("tiny")
    ids = tokenizer.encode("x🙂y")
    assert len(ids) == 6
    state, parts = Stream(), []
    for token in ids:
        before = state
        state, part = push(tokenizer, state, token)
        parts.append(part)
        assert push(tokenizer, before, token) == (state, part)  # nothing is kept elsewhere
    assert parts == ["x", "", "", "", "🙂", "y"]
    assert len(state.tokens) == 1  # it forgets what is out


def test_unfinished_characters_come_at_the_end():
    tokenizer = load_tokenizer("tiny")
    ids = tokenizer.encode("x🙂")[:-1]
    assert list(stream_text(tokenizer, ids)) == ["x", "\ufffd\ufffd\ufffd"]
    assert list(stream_text(tokenizer, [])) == []


def test_the_first_space_of_sentencepiece_goes_once(sentencepiece_path):
    tokenizer = load_tokenizer(sentencepiece_path)
    ids = tokenizer.encode("the answer<|user|> is")
    assert "".join(stream_text(tokenizer, ids)) == "the answer<|user|> is"
    assert "".join(stream_text(tokenizer, ids, skip_special=True)) == "the answer is"
