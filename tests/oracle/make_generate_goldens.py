"""What transformers generates greedily, 64 tokens behind prompts of several lengths.

    pip install -e '.[oracle]'
    python tests/oracle/make_generate_goldens.py [--check]

writes tests/golden/generated.npz: per family of tests/golden/families the tokens that `generate`
gives (do_sample=False, no end-of-sequence token) in float32, and once the left-padded prompts.
`--check` compares instead.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = FOLDER / "generated.npz"
FAMILIES = ("llama", "qwen3", "gemma3_text", "deepseek_v3")
LENGTHS, WIDTH, NEW = (9, 2, 5), 9, 64


def prompts() -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask) of the prompts, padded on the left."""
    mask = np.arange(WIDTH) >= WIDTH - np.array(LENGTHS)[:, None]
    tokens = np.random.default_rng(0).integers(3, 60, mask.shape)
    return np.where(mask, tokens, 0), mask


@torch.no_grad()
def generated(family: str) -> np.ndarray:
    """The tokens behind each prompt."""
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "families" / family, dtype=torch.float32)
    model.eval()
    tokens, mask = (torch.tensor(x.astype(np.int64)) for x in prompts())
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id = None, 0
    found = model.generate(
        tokens, attention_mask=mask, generation_config=settings, do_sample=False,
        max_new_tokens=NEW,
    )  # fmt: skip
    return found[:, WIDTH:].numpy().astype(np.int32)


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    tokens, mask = prompts()
    made = {"prompts": tokens.astype(np.int32), "mask": mask}
    made |= {family: generated(family) for family in FAMILIES}
    if check:
        stored = np.load(GOLDEN)
        assert all(np.array_equal(stored[name], made[name]) for name in made)
    else:
        np.savez_compressed(GOLDEN, **made)
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size:,} bytes, {'the same' if check else 'written'}")


if __name__ == "__main__":
    main()
