"""What `carry_over` saves: decode steps and full slots of a row of rollouts, with and without.

    python docs/carry_steps.py

Sequences have lengths as RL has them (lognormal, sigma 0.9, an eighth of 512 tokens in the mean).
Steps don't depend on the model, so it is a very small one.
"""

import math

import jax
import numpy as np

from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.rollout import carry, conversations, serving
from posttrain_jax.rollout.continuous import plan_sizes
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.row_settings import RowSettings
from posttrain_jax.rollout.sampling import Sampling

GROUPS, GROUP, SLOTS, CAP, WIDTH, ROLLOUTS = 32, 8, 64, 512, 8, 8
MODEL = ModelConfig(
    vocab_size=64, layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn=16, max_length=1024
)


def asked(numbers: np.ndarray) -> Asked:
    """The prompts of these numbers, and the lengths of their sequences."""
    tokens = np.ones((len(numbers), WIDTH), np.int32)
    uids = (numbers[:, None] * GROUP + np.arange(GROUP)).reshape(-1).astype(np.uint32)
    rng, mean = np.random.default_rng(0), math.log(CAP / 8) - 0.9**2 / 2
    lengths = np.clip(np.round(rng.lognormal(mean, 0.9, 1 << 16)), 1, CAP).astype(np.int32)
    return Asked(tokens, tokens, jax.random.key(0), uids, RowSettings(max_new=lengths[uids]))


def measure(spare: int) -> list[tuple[int, int, int]]:
    """Steps, live slots summed over them, and learnt tokens of each rollout but the first two."""
    model, rules = make_model(MODEL), Rules(Sampling(), CAP, GROUP)
    params, found = jax.jit(model.init)(jax.random.key(0)), []
    sizes = plan_sizes(SLOTS, GROUPS, rules)._replace(spare=spare)
    left = carry.begin(model, asked(np.arange(spare)), rules, np.arange(spare, dtype=np.int32))
    for number in range(ROLLOUTS):
        first = spare + number * GROUPS
        new = np.arange(first, first + GROUPS)
        request, source_P = carry.join(asked(new), new.astype(np.int32), left)
        state = serving.begin(model, request, rules, sizes, left.said)
        state = conversations.drive(model, params, request, rules, sizes, state, stretch=CAP)
        rollout, left, _ = carry.part(
            state, request, rules, sizes, source_P, left.said, np.int32(number)
        )
        s, tokens = state.slots, int(rollout.completion_mask_BT.sum())
        found.append((int(s.steps.sum()), int(s.busy.sum()), tokens))
    return found[2:]


def main() -> None:
    """Print the table."""
    print(f"{GROUPS} groups of {GROUP} a rollout, {SLOTS} slots, {ROLLOUTS - 2} rollouts\n")
    print("| `carry_over` | steps a rollout | tokens a step | slots in use |\n|---|---|---|---|")
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        for spare in (0, 4, 8, 16):
            steps, busy, tokens = np.array(measure(spare)).sum(axis=0)
            each = steps / (ROLLOUTS - 2)
            print(f"| {spare} | {each:,.0f} | {tokens / steps:.1f} | {busy / steps / SLOTS:.0%} |")


if __name__ == "__main__":
    main()
