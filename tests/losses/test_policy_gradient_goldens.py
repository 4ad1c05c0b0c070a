"""Losses and gradients against TRL's and rlax's own (tests/oracle/make_policy_gradient_goldens.py).

Agreement is to 1e-6 in float32; what is stored was computed in float64.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.api import Batch, PolicyOut
from posttrain_jax.losses import grpo
from posttrain_jax.losses.common import aggregation_weights, clipped_surrogate

GOLDEN = Path(__file__).parents[1] / "golden" / "policy_gradient"
PROMPT = 2
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
SEQUENCES, LOCAL, ALL = "seq_mean_token_mean", "token_mean_local", "token_mean_global"
# TRL's settings of each case stand in the script that made it.
CASES = {
    "grpo": (SEQUENCES, CLIP),
    "bnpo": (LOCAL, CLIP),
    "bnpo_two_parts": (LOCAL, CLIP),
    "dr_grpo": ("constant", CLIP),
    "dapo": (ALL, CLIP),
    "dapo_two_parts": (ALL, CLIP),
    "grpo_kl": (SEQUENCES, {"kl_coef": 0.4, **CLIP}),
    "grpo_dual_clip": (SEQUENCES, {"dual_clip": 1.5, **CLIP}),
    "gspo": (SEQUENCES, {"importance_level": "sequence_mean", "clip_low": 0.1, "clip_high": 0.15}),
    "gspo_kl": (SEQUENCES, {"importance_level": "sequence_mean", "kl_coef": 0.4, **CLIP}),
    "cispo": (ALL, {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.3}),
    "cispo_kl": (ALL, {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.3, "kl_coef": 0.4}),
    "entropy": (LOCAL, {"entropy_coef": 0.3, **CLIP}),
    "token_truncate": (LOCAL, {"off_policy_weight": "token", "off_policy_cap": 1.5, **CLIP}),
    "token_mask": (
        LOCAL,
        {"off_policy_weight": "token", "off_policy_cap": 0, "off_policy_mask": "token",
         "off_policy_low": 0.7, "off_policy_high": 1.5, **CLIP},
    ),
    "sequence_truncate": (
        SEQUENCES, {"off_policy_weight": "sequence", "off_policy_cap": 1.5, **CLIP},
    ),
    "sequence_mask": (
        SEQUENCES,
        {"off_policy_weight": "sequence", "off_policy_cap": 0, "off_policy_mask": "sequence",
         "off_policy_low": 0.5, "off_policy_high": 2.0, "kl_coef": 0.4, **CLIP},
    ),
    "rloo": (SEQUENCES, {"importance_level": "sequence", **CLIP}),
}  # fmt: skip


def padded(array, fill=-7.0):
    """The response behind a prompt of arbitrary numbers, in float32."""
    return np.pad(array, ((0, 0), (PROMPT, 0)), constant_values=fill).astype(np.float32)


def make_batch(stored, aggregation, microbatches):
    mask = padded(stored["mask"], 0)
    weight = aggregation_weights(mask, aggregation, microbatches=microbatches, constant=10)
    ints = jnp.zeros(mask.shape, jnp.int32)
    advantage = np.broadcast_to(stored["advantage"][:, None], mask.shape).astype(np.float32)
    return Batch(
        ints, ints, ints, weight, advantage, padded(stored["behaviour"]),
        padded(stored["reference"]), proximal_logp_BT=padded(stored["proximal"]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def stored():
    with np.load(GOLDEN / "losses.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_trls(stored, name):
    aggregation, options = CASES[name]
    parts = 2 if name.endswith("two_parts") else 1
    batch = make_batch(stored, aggregation, parts)

    def total(logp, entropy):
        lost = 0.0
        for part in range(parts):
            rows = slice(part, None, parts)
            out = PolicyOut(logp[rows], entropy[rows])
            lost += grpo.loss(out, jax.tree.map(lambda x, r=rows: x[r], batch), **options)[0]
        return lost

    loss, slopes = jax.value_and_grad(total, (0, 1))(
        padded(stored["logp"]), padded(stored["entropy"])
    )
    np.testing.assert_allclose(loss, stored[f"{name}/loss"], rtol=0, atol=1e-6)
    by_entropy = stored.get(f"{name}/by_entropy", np.zeros_like(stored["logp"]))
    for slope, expected in zip(slopes, (stored[f"{name}/by_logp"], by_entropy), strict=True):
        np.testing.assert_allclose(slope, padded(expected, 0), rtol=0, atol=1e-6)


def test_every_stored_case_is_compared(stored):
    assert {name.split("/")[0] for name in stored if "/" in name} == set(CASES)


def test_ppos_surrogate_is_rlaxs():
    with np.load(GOLDEN / "ppo.npz") as stored:
        log_ratio, advantage = (stored[k].astype(np.float32) for k in ("log_ratio", "advantage"))
        loss, slope = jax.value_and_grad(
            lambda x: -jnp.mean(clipped_surrogate(jnp.exp(x), advantage, 0.2, 0.2)[0])
        )(log_ratio)
        np.testing.assert_allclose(loss, stored["loss"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(slope, stored["by_log_ratio"], rtol=0, atol=1e-6)
