"""Preference losses and gradients against TRL's, in every layout that a batch of pairs can have.

The stored numbers are made by tests/oracle/make_preference_goldens.py.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.api import Batch, PolicyOut
from posttrain_jax.losses import cpo, dpo, ipo, kto, orpo, simpo

GOLDEN = Path(__file__).parents[1] / "golden" / "preference"
CASES = {
    "dpo_sigmoid": (dpo, {"beta": 0.1}, 0.0),
    "dpo_normalised": (dpo, {"beta": 5.0, "length_normalised": True}, 0.0),
    "dpo_smoothed": (dpo, {"beta": 0.2, "label_smoothing": 0.1}, 0.0),
    "dpo_nll": (dpo, {"beta": 0.1}, 0.2),
    "ipo": (ipo, {"beta": 0.15}, 0.0),
    "cpo": (cpo, {"beta": 0.1}, 1.0),
    "cpo_smoothed": (cpo, {"beta": 0.3, "label_smoothing": 0.1}, 0.5),
    "simpo": (simpo, {"beta": 2.0, "gamma": 0.3}, 0.0),
    "simpo_nll": (simpo, {"beta": 2.5, "gamma": 1.2}, 0.7),
    "orpo": (orpo, {"beta": 0.1}, 1.0),
    "orpo_strong": (orpo, {"beta": 2.0}, 1.0),
}
"""Stored case -> loss, its options, and how much likelihood TRL adds: a mean over the tokens."""
LAYOUTS = {"one_a_row": (1, 19, 14), "packed": (4, 60, 4)}
"""Name -> sequences a row, tokens a row, rows; with padding, and whole rows of it."""


def spread(layout, *arrays, fill=0.0):
    """Arrays with a row for each sequence, laid out; and where each of those rows came to lie."""
    sequences, length, rows = LAYOUTS[layout]
    width = arrays[0].shape[1]
    places = [(i // sequences, width * (i % sequences)) for i in range(len(arrays[0]))]
    laid = [np.full((rows, length), fill, np.float32) for _ in arrays]
    for i, (row, start) in enumerate(places):
        for target, source in zip(laid, arrays, strict=True):
            target[row, start : start + width] = source[i]
    return laid, [(row, slice(start, start + width)) for row, start in places]


def make_batch(layout, mask, reference, nll=None, advantage=None):
    """A batch of sequences of equal weight, and where they lie."""
    number = np.arange(len(mask))[:, None] % LAYOUTS[layout][0] + 1
    (segments,), places = spread(layout, np.broadcast_to(number, mask.shape))
    more = [np.zeros(mask.shape) if x is None else x for x in (nll, advantage)]
    (weight, ref, nll_weight, sign), _ = spread(layout, mask, reference, *more)
    ints = jnp.asarray(segments, jnp.int32)
    batch = Batch(
        ints, ints, ints, jnp.asarray(weight), reference_logp_BT=jnp.asarray(ref),
        nll_weight_BT=None if nll is None else jnp.asarray(nll_weight),
        advantage_BT=None if advantage is None else jnp.asarray(sign),
    )  # fmt: skip
    return batch, places


def solve(loss, batch, logp, places, layout):
    """(loss, gradient of each sequence's log-probs); what no loss should read is NaN."""
    (laid,), _ = spread(layout, logp, fill=np.nan)

    def of(logp_BT):
        return loss(PolicyOut(logp_BT, jnp.zeros_like(logp_BT)), batch)[0]

    value, grad = jax.jit(jax.value_and_grad(of))(jnp.asarray(laid))
    grad = np.asarray(grad)
    return float(value), np.stack([grad[row, place] for row, place in places])


@functools.cache
def stored(name):
    """The arrays of a file."""
    return dict(np.load(GOLDEN / f"{name}.npz"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_pairs(case, layout):
    (module, options, coef), golden = CASES[case], stored("pairs")
    mask, nll = golden["mask"], None
    if coef:
        counted = golden["inside"] if module is orpo else mask  # TRL's ORPO imitates prompts too
        counted = counted & (np.arange(len(mask)) % 2 == 0)[:, None]
        counted[:, 0] = False
        nll = coef * counted / counted.sum()
    batch, places = make_batch(layout, mask / (len(mask) / 2), golden["reference"], nll)
    loss = functools.partial(module.loss, sequences=LAYOUTS[layout][0], **options)
    value, grad = solve(loss, batch, golden["logp"], places, layout)
    assert value == pytest.approx(float(golden[f"{case}/loss"]), rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(grad, golden[f"{case}/grad"], atol=1e-6)
    assert np.abs(golden[f"{case}/grad"]).max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["kto", "kto_weighted"])
@pytest.mark.parametrize("file", ["kto", "kto_no_drift"])
def test_kto(file, case, layout):
    golden = stored(file)
    options = {"beta": 0.1} if case == "kto" else {
        "beta": 0.4, "desirable_weight": 1.33, "undesirable_weight": 0.7
    }  # fmt: skip
    label = np.where(golden["label"], 1, -1)[:, None] * golden["mask"]
    count = len(golden["mask"])
    batch, places = make_batch(layout, golden["mask"] / count, golden["reference"], None, label)
    other, _ = make_batch(layout, golden["other_mask"] / count, golden["other_reference"])
    (logp,), _ = spread(layout, golden["other"])
    drift = kto.drift(jnp.asarray(logp), other)
    assert (float(drift) > 0.1) == (file == "kto") and float(drift) >= 0
    loss = functools.partial(kto.loss, kl=drift, sequences=LAYOUTS[layout][0], **options)
    value, grad = solve(loss, batch, golden["logp"], places, layout)
    assert value == pytest.approx(float(golden[f"{case}/loss"]), rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(grad, golden[f"{case}/grad"], atol=1e-6)


def test_means_over_each_side_of_kto():
    golden = stored("kto")
    mask, label = golden["mask"], golden["label"]
    signs = np.where(label, 1, -1)[:, None] * mask
    batch, _ = make_batch("one_a_row", mask / len(mask), golden["reference"], None, signs)
    (logp,), _ = spread("one_a_row", golden["logp"])
    logp = jnp.asarray(logp)
    metrics = kto.means(kto.loss(PolicyOut(logp, logp), batch, kl=0.3, beta=0.2)[1])
    ratio = 0.2 * np.where(mask, golden["logp"] - golden["reference"], 0).sum(axis=1)
    expected = {
        "chosen_share": label.mean(), "rejected_share": 1 - label.mean(),
        "chosen_reward": ratio[label].mean(), "rejected_reward": ratio[~label].mean(),
        "margin": ratio[label].mean() - ratio[~label].mean(),
        "chosen_tokens": mask[label].sum(axis=1).mean(),
        "rejected_logp": np.where(mask, golden["logp"], 0).sum(axis=1)[~label].mean(),
    }  # fmt: skip
    found = {name: float(metrics[name]) for name in expected}
    assert found == pytest.approx(expected, rel=1e-5)


def test_odds_stay_finite_where_a_response_is_certain():
    logp = jnp.array([-1e-12, 0.0, -0.3, -40.0])
    value, slope = jax.vmap(jax.value_and_grad(orpo.log_odds))(logp)
    exact = np.float64([-1e-6, -1e-6, -0.3, -40.0])
    np.testing.assert_allclose(value, exact - np.log(-np.expm1(exact)), rtol=1e-5)
    np.testing.assert_allclose(slope[2:], 1 / -np.expm1(exact[2:]), rtol=1e-5)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("module", [cpo, orpo])
def test_likelihood_is_a_part_of_these_losses(module):
    golden = stored("pairs")
    batch, _ = make_batch("one_a_row", golden["mask"], golden["reference"])
    with pytest.raises(ValueError, match="nll_weight_BT"):
        module.loss(PolicyOut(batch.weight_BT, batch.weight_BT), batch)


def test_ipo_by_sums_as_its_equation_has_it():
    golden = stored("pairs")
    mask = golden["mask"]
    batch, _ = make_batch("one_a_row", mask / 5, golden["reference"])
    (logp,), _ = spread("one_a_row", golden["logp"])
    out = PolicyOut(jnp.asarray(logp), jnp.asarray(logp))
    value, _ = ipo.loss(out, batch, beta=0.25, length_normalised=False)
    ratio = np.where(mask, golden["logp"] - golden["reference"], 0).sum(axis=1)
    assert value == pytest.approx(np.mean((ratio[0::2] - ratio[1::2] - 2.0) ** 2), rel=1e-5)
