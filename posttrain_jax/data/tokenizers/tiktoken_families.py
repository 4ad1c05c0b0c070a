"""Published tiktoken vocabularies: how each splits a text, and its special tokens.

A rank file holds neither. The number of ranks tells which family it is. Sources:
meta-llama/llama-models, llama3/tokenizer.py and llama4/tokenizer.py; QwenLM/Qwen,
tokenization_qwen.py; openai/tiktoken, openai_public.py (o200k_harmony, gpt-oss).
"""

from collections.abc import Callable
from typing import NamedTuple

from posttrain_jax.data.tokenizers.byte_level import CL100K, O200K, QWEN2


class Family(NamedTuple):
    """A published vocabulary.

    Attributes:
      ranks: how many ranks its file has.
      pattern: what splits a text.
      specials: `() -> texts of the special tokens`, the first with the id after the last rank.
      eos: ends an assistant's turn (not: a document).
      bos, pad: "" where there is none.
      nfc: whether the text is put into Unicode's normal form C first.
    """

    ranks: int
    pattern: str
    specials: Callable[[], list[str]]
    eos: str
    bos: str = ""
    pad: str = ""
    nfc: bool = False


def _reserved(name: str, count: int, start: int = 0) -> list[str]:
    return [f"<|{name}{i}|>" for i in range(start, start + count)]


def _llama3() -> list[str]:
    named = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"]
    named += ["finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id"]
    named += ["eot_id", "python_tag", "image"]
    tokens = [f"<|{name}|>" for name in named]
    return tokens + _reserved("reserved_special_token_", 256 - len(tokens), 2)


def _llama4() -> list[str]:
    text, vision = "text_post_train_reserved_special_token_", "vision_reserved_special_token_"
    thought = "reasoning_reserved_special_token_"
    named = ["begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix"]
    named += ["header_start", "header_end", "eom", "eot", "step"]
    named += [f"{text}{i}" for i in range(6)]
    named += ["python_start", "python_end", "finetune_right_pad"]
    named += [f"{text}{i}" for i in range(8, 69)]
    named += ["image_start", "image_end", f"{vision}0", f"{vision}1", "tile_x_separator"]
    named += ["tile_y_separator", *(f"{vision}{i}" for i in range(2, 6)), "image"]
    named += [f"{vision}6", "patch", *(f"{vision}{i}" for i in range(7, 1048))]
    named += [f"{thought}{i}" for i in range(8)]
    named += ["reasoning_thinking_start", "reasoning_thinking_end"]
    tokens = [f"<|{name}|>" for name in named]
    return tokens + _reserved("reserved_special_token_", 2048 - len(tokens))


def _harmony() -> list[str]:
    named = {199998: "startoftext", 199999: "endoftext", 200002: "return", 200003: "constrain"}
    named |= {200005: "channel", 200006: "start", 200007: "end", 200008: "message"}
    named |= {200012: "call", 200018: "endofprompt"}
    return [f"<|{named.get(i, f'reserved_{i}')}|>" for i in range(199998, 201088)]


FAMILIES = {
    "llama3": Family(
        128_000, CL100K, _llama3, "<|eot_id|>", "<|begin_of_text|>", "<|finetune_right_pad_id|>"
    ),
    "llama4": Family(
        200_000, O200K, _llama4, "<|eot|>", "<|begin_of_text|>", "<|finetune_right_pad|>"
    ),
    "qwen": Family(
        151_643,
        QWEN2,
        lambda: ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_reserved("extra_", 205)],
        "<|im_end|>",
        pad="<|endoftext|>",
        nfc=True,
    ),
    "o200k_harmony": Family(
        199_998, O200K, _harmony, "<|return|>", "<|startoftext|>", "<|endoftext|>"
    ),
}
"""By name."""
