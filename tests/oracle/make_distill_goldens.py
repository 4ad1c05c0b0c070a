"""TRL's generalised Jensen-Shannon divergence and its gradient on random logits.

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/oracle/make_distill_goldens.py

writes tests/golden/distill/gkd.npz. Both come from `GKDTrainer.generalized_jsd_loss` in float64:
the mean over the tokens that have a label, and its derivative with respect to the student's logits,
for every pair of `betas` (0 is the forward, 1 the reverse KL) and `temperatures`.
"""

from pathlib import Path

import numpy as np
import torch
from trl.experimental.gkd import GKDTrainer

GOLDEN = Path(__file__).parents[1] / "golden" / "distill"
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
TEMPERATURES = (1.0, 2.5)


def main() -> None:
    """Draw the logits and write everything."""
    rng = np.random.default_rng(0)
    student, teacher = (
        (2.0 * rng.standard_normal((3, 5, 13))).astype(np.float32) for _ in range(2)
    )
    labels = np.where(rng.random((3, 5)) < 0.6, 1, -100)
    values, gradients = [], []
    for beta in BETAS:
        for temperature in TEMPERATURES:
            logits = torch.tensor(student, dtype=torch.float64, requires_grad=True)
            value = GKDTrainer.generalized_jsd_loss(
                logits, torch.tensor(teacher, dtype=torch.float64), torch.tensor(labels),
                beta=beta, temperature=temperature,
            )  # fmt: skip
            value.backward()
            values.append(value.item())
            gradients.append(logits.grad.numpy())
    shape = (len(BETAS), len(TEMPERATURES))
    GOLDEN.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        GOLDEN / "gkd.npz", student=student, teacher=teacher, labels=labels, betas=BETAS,
        temperatures=TEMPERATURES, values=np.reshape(values, shape),
        gradients=np.reshape(gradients, (*shape, *student.shape)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
