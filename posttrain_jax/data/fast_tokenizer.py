"""A tokenizer.json that encodes as a SentencePiece model does, for programs that read only that.

transformers' own conversion of a `.model` file puts a space before the text and forgets that
user-defined pieces are whole tokens. Done here: byte-pair models without a dummy prefix (the kind
`train_tiny_tokenizer.py` makes). The result is compared with the model before it is given out.
"""

import math
import random

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

SPACE = "\u2581"


def from_sentencepiece(
    processor: sentencepiece.SentencePieceProcessor, markers: dict[str, int]
) -> Tokenizer | None:
    """The same tokenizer in the `tokenizers` library, or None where it can't be expressed.

    Args:
      processor: the model.
      markers: the turn markers, which become special tokens.
    """
    size = processor.get_piece_size()
    pieces = [processor.id_to_piece(i) for i in range(size)]
    fixed = {i for i in range(size) if _is_fixed(processor, i)} | set(markers.values())
    words = [piece.replace(SPACE, " ") if i in fixed else piece for i, piece in enumerate(pieces)]
    if len(set(words)) < size:
        return None
    backend = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            _merges(processor, [i for i in range(size) if i not in fixed]),
            unk_token=pieces[processor.unk_id()],
            byte_fallback=any(processor.is_byte(i) for i in range(size)),
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    for i in sorted(fixed):  # one by one: the library groups special tokens before others
        token = AddedToken(words[i], normalized=False, special=i in markers.values())
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    return backend if _agrees(processor, backend, pieces, fixed) else None


def _is_fixed(processor: sentencepiece.SentencePieceProcessor, i: int) -> bool:
    """User-defined pieces have score +0.0; the first learnt merge has -0.0."""
    score = processor.get_score(i)
    plain = not (processor.is_unknown(i) or processor.is_byte(i) or processor.is_control(i))
    return plain and score == 0.0 and math.copysign(1.0, score) > 0


def _merges(processor, learnt: list[int]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best-scored piece first."""
    scores = {processor.id_to_piece(i): processor.get_score(i) for i in learnt}
    joins = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, left, right in sorted(joins)]


def _agrees(processor, backend: Tokenizer, pieces: list[str], fixed: set[int]) -> bool:
    rng = random.Random(0)
    texts = [p.replace(SPACE, " ") for i, p in enumerate(pieces) if i in fixed] or [""]
    texts += ["a", "quick", " brown", "  ", "\n", "é", "好", "🙂", "7", ".", "<", "|>"]
    control = [i for i in range(len(pieces)) if processor.is_control(i)]
    hidden = [pieces[i] for i in control]
    for _ in range(200):
        text = "".join(rng.choices(texts, k=rng.randint(1, 12)))
        if any(marker in text for marker in hidden):  # SentencePiece does not read these in text
            continue
        ids = processor.encode(text)
        if backend.encode(text, add_special_tokens=False).ids != ids or backend.decode(
            ids, skip_special_tokens=False
        ) != processor.decode(ids):
            return False
    return True
