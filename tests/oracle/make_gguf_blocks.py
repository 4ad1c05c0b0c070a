"""Blocks of every GGUF storage type, decoded by the gguf package.

    pip install gguf
    python tests/oracle/make_gguf_blocks.py [--check]

writes tests/golden/gguf_blocks.npz: for each type eight blocks of random bytes (the float16 scales
within them drawn apart, so that they are finite) and the float32 values of the package.
`--check` compares instead.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden" / "gguf_blocks.npz"
# type -> where its float16 numbers start in a block
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
BLOCKS = 8


def make() -> dict[str, np.ndarray]:
    """Type -> its bytes [BLOCKS, size]; type/values -> what they mean."""
    found = {}
    for number, (kind, places) in enumerate(SCALES.items()):
        rng, quantisation = np.random.default_rng(number), gguf.GGMLQuantizationType[kind]
        size = gguf.GGML_QUANT_SIZES[quantisation][1]
        raw = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for place in places:
            scale = rng.standard_normal((BLOCKS, 1)).astype(np.float16)
            raw[:, place : place + 2] = scale.view(np.uint8)
        found[kind] = raw
        found[f"{kind}/values"] = gguf.dequantize(raw, quantisation)
    return found


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    made = make()
    if parser.parse_args().check:
        stored = np.load(GOLDEN)
        assert sorted(stored) == sorted(made)
        for name, array in made.items():
            np.testing.assert_array_equal(stored[name], array)
        print("the same")
    else:
        np.savez_compressed(GOLDEN, **made)
        print(f"{GOLDEN.name}: {GOLDEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
