"""Losses of reward models by TRL and torch, and their gradients, in float64.

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/oracle/make_reward_losses.py

writes tests/golden/reward_losses.npz. `pairs*` are trl.RewardTrainer.compute_loss on a model that
answers with the stored scores, chosen ones first; `steps` is torch's cross_entropy, which
transformers' token classification (and with it a process reward model) is trained by, with the
label -100 where there is no step; `soft` the same with probabilities for labels; `points` is
binary_cross_entropy_with_logits. Means over what is counted.
"""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trl import RewardTrainer

FILE = Path(__file__).parents[1] / "golden" / "reward_losses.npz"


def trl_loss(chosen, rejected, margin, center):
    """RewardTrainer.compute_loss and its gradient with respect to (chosen, rejected)."""
    scores = torch.tensor(np.concatenate([chosen, rejected])[:, None], requires_grad=True)

    class Model:
        training = False

        def __call__(self, **_):
            return SimpleNamespace(logits=scores)

    trainer = RewardTrainer.__new__(RewardTrainer)
    trainer.model = Model()
    trainer.args = SimpleNamespace(center_rewards_coefficient=center)
    trainer._metrics = {"eval": defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    same = lambda x: x  # noqa: E731
    trainer.accelerator = SimpleNamespace(gather=same, gather_for_metrics=same)
    inputs = {} if margin is None else {"margin": torch.tensor(margin)}
    loss = RewardTrainer.compute_loss(trainer, trainer.model, inputs)
    loss.backward()
    return loss.detach().numpy(), scores.grad[:, 0].numpy().reshape(2, -1)


def torch_loss(function, outputs, *rest):
    """A function of torch and its gradient with respect to the outputs."""
    x = torch.tensor(outputs, requires_grad=True)
    loss = function(x, *(torch.tensor(r) for r in rest))
    loss.backward()
    return loss.detach().numpy(), x.grad.numpy()


def main() -> None:
    """Draw the inputs, compute, and write the file."""
    rng = np.random.default_rng(7)
    chosen, rejected = rng.normal(size=(2, 9)) * 3
    margin = rng.choice([0.0, 1 / 3, 2 / 3, 1.0], 9)
    out = {"chosen": chosen, "rejected": rejected, "margin": margin, "center": np.float64(0.01)}
    cases = {"pairs": (None, None), "pairs_margin": (margin, None), "pairs_center": (margin, 0.01)}
    for name, (gap, center) in cases.items():
        out[name], out[f"{name}_gradient"] = trl_loss(chosen, rejected, gap, center)
    logits, labels = rng.normal(size=(5, 4, 2)) * 2, rng.integers(0, 2, (5, 4))
    labels[rng.random((5, 4)) < 0.3] = -100
    entropy = torch.nn.functional.cross_entropy
    out |= {"logits": logits, "labels": labels, "share": rng.random((5, 4))}
    flat = lambda x, y: entropy(x.reshape(-1, 2), y.reshape(-1), ignore_index=-100)  # noqa: E731
    out["steps"], out["steps_gradient"] = torch_loss(flat, logits, labels)
    both = np.stack([1 - out["share"], out["share"]], axis=-1)
    soft = lambda x, y: entropy(x.reshape(-1, 2), y.reshape(-1, 2))  # noqa: E731
    out["soft"], out["soft_gradient"] = torch_loss(soft, logits, both)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    out["points"], out["points_gradient"] = torch_loss(bce, chosen, (rejected > 0) * 1.0)
    np.savez(FILE, **out)


if __name__ == "__main__":
    main()
