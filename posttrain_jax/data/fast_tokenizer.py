"""A tokenizer.json that encodes as a SentencePiece model does, for programs that read only that.

transformers' own conversion of a `.model` file puts a space before every piece of text and forgets
that user-defined pieces are whole tokens. Done here: byte-pair and unigram models. The result is
compared with the model before it is given out. One difference stays: where a text spells the name
of a byte piece, `<0x41>`, a unigram model in that library takes it for the byte.
"""

import random
from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from posttrain_jax.data.tokenizers import sentencepiece_proto as proto

SPACE = "\u2581"


def from_sentencepiece(
    model: proto.Model,
    encode: Callable[[str], list[int]],
    decode: Callable[..., str],
    tags: dict[str, int],
    markers: frozenset[int],
) -> Tokenizer | None:
    """The same tokenizer in the `tokenizers` library, or None where it can't be expressed.

    Args:
      model: the parsed file.
      encode, decode: what the result has to agree with.
      tags: pieces that are cut out of a text first.
      markers: the ids of the turn markers, which become special tokens.
    """
    fixed = {i for i, p in enumerate(model.pieces) if p.kind == proto.USER_DEFINED}
    fixed |= set(tags.values())
    words = [
        piece.text.replace(SPACE, " ") if i in fixed else piece.text
        for i, piece in enumerate(model.pieces)
    ]
    if len(set(words)) < len(words):
        return None
    backend = Tokenizer(_model(model, words, fixed))
    _set_text_rules(backend, model)
    for i in sorted(fixed):  # one by one: the library groups special tokens before others
        token = AddedToken(words[i], normalized=False, special=i in markers)
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    return backend if _agrees(encode, decode, backend, model, fixed) else None


def _model(model: proto.Model, words: list[str], fixed: set[int]) -> Any:
    unknown = next(i for i, p in enumerate(model.pieces) if p.kind == proto.UNKNOWN)
    if model.kind == proto.UNIGRAM:
        scored = [(word, piece.score) for word, piece in zip(words, model.pieces, strict=True)]
        return models.Unigram(scored, unknown, model.byte_fallback)
    return models.BPE(
        {word: i for i, word in enumerate(words)},
        _merges(model, fixed),
        unk_token=model.pieces[unknown].text,
        byte_fallback=model.byte_fallback,
        fuse_unk=True,
    )


def _set_text_rules(backend: Tokenizer, model: proto.Model) -> None:
    """Normalisation, the space in front, and how pieces become text again."""
    rules: list[Any] = []
    if model.charsmap:
        rules.append(normalizers.Precompiled(model.charsmap))
    if model.squeeze_spaces:
        rules += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    rules.append(normalizers.Replace(" ", SPACE))
    backend.normalizer = rules[0] if len(rules) == 1 else normalizers.Sequence(rules)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        # Metaspace adds no prefix where the text begins with its own sign, SentencePiece does:
        # so one adds a blank, of which there are none left, and the next turns it into the sign.
        front = pre_tokenizers.Metaspace(" ", "first", split=False)
        rest = pre_tokenizers.Metaspace(SPACE, "never", split=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([front, rest])
        back.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(back)


def _merges(model: proto.Model, fixed: set[int]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best-scored piece first."""
    scores = {piece.text: piece.score for i, piece in enumerate(model.pieces) if i not in fixed}
    joins = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, left, right in sorted(joins)]


def _agrees(encode, decode, backend: Tokenizer, model: proto.Model, fixed: set[int]) -> bool:
    """Whether two hundred random texts become the same ids, and the ids the same texts."""
    rng = random.Random(0)
    written = [p.text.replace(SPACE, " ") for p in model.pieces]
    texts = [written[i] for i in sorted(fixed)] + ["a", "quick", " brown", "  ", "\n", "é", "好"]
    texts += ["🙂", "7", ".", "<", "|>"]
    plain = [i for i, p in enumerate(model.pieces) if i not in fixed and p.kind == proto.NORMAL]
    learnt = [written[i] for i in plain]
    for number in range(200):
        # The second half from the vocabulary itself: there the order of the merges shows.
        text = "".join(rng.choices((number >= 100 and learnt) or texts, k=rng.randint(1, 12)))
        ids = encode(text)
        if backend.encode(text, add_special_tokens=False).ids != ids:
            return False
        if backend.decode(ids, skip_special_tokens=False) != decode(ids):
            return False
    return True
