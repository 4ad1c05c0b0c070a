"""What transformers' logits processors make of random logits.

    pip install -e '.[oracle]'
    python tests/oracle/make_sampling_goldens.py [--check]

writes tests/golden/sampling.npz: `logits` [6, 50], `tokens` [6, 9] (prompt and response so far, for
the repetition penalty), `settings` (one JSON object a case) and `scores` [cases, 6, 50], the logits
after the processors in the order in which `generate` puts them; -inf where a token is left out.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling.npz"
PROCESSORS = {
    "logit_bias": lambda pairs: SequenceBiasLogitsProcessor({(i,): bias for i, bias in pairs}),
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
"""In generate's order (transformers/generation/utils.py, _get_logits_processor)."""
CASES = (
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.1},
    {"top_p": 0.8},
    {"top_p": 0.99},
    {"min_p": 0.02},
    {"min_p": 0.3},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"logit_bias": [[3, 2.5], [17, -4.0]]},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"logit_bias": [[3, 2.5], [17, -4.0]], "repetition_penalty": 1.2, "temperature": 0.7,
     "top_k": 12, "top_p": 0.85, "min_p": 0.1},
)  # fmt: skip


def make() -> dict[str, np.ndarray]:
    """Draw the logits and put them through every case."""
    rng = np.random.default_rng(0)
    logits = (2.0 * rng.standard_normal((6, 50))).astype(np.float32)
    tokens = rng.integers(0, 50, (6, 9))
    scores = []
    for case in CASES:
        chain = LogitsProcessorList(
            PROCESSORS[name](case[name]) for name in PROCESSORS if name in case
        )
        scores.append(chain(torch.tensor(tokens), torch.tensor(logits)).numpy())
    settings = np.array([json.dumps(case) for case in CASES])
    return {"logits": logits, "tokens": tokens, "settings": settings, "scores": np.stack(scores)}


def main() -> None:
    """Write the file, or compare it with what is made now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    made = make()
    if not parser.parse_args().check:
        np.savez_compressed(GOLDEN, **made)
        return
    with np.load(GOLDEN) as stored:
        for name, array in made.items():
            np.testing.assert_array_equal(stored[name], array, err_msg=name)


if __name__ == "__main__":
    main()
