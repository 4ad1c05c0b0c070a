"""Preference losses and their gradients as TRL's own trainers compute them.

    pip install -e '.[oracle]' trl==1.16.0 datasets
    python tests/oracle/make_preference_goldens.py

writes tests/golden/preference/{pairs,kto,kto_no_drift}.npz: log-probs of the policy and the
reference, masks, and for each case the loss and its gradient with respect to the policy's
log-probs, in float64, with the versions they were made with. Rows are chosen, rejected, chosen, ...

TRL 1.16 defines DPO and KTO in `trl.trainer`, CPO (with SimPO) and ORPO in `trl.experimental`. No
trainer is built: an object without `__init__` gets the settings that the loss reads, and a model
that answers with the log-probs of the case. CPO and ORPO take logits: over a vocabulary of two,
[x, log(1 - exp(x))] are logits and log-probs alike, and the gradient of x is that of a log-prob.
TRL's DPO has no label smoothing any more; its `aot` loss of a single pair is the smoothed one.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
import trl
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

GOLDEN = Path(__file__).parents[1] / "golden" / "preference"
PAIRS, LENGTH = 5, 14
DPO = {
    "dpo_sigmoid": {"beta": 0.1, "loss_types": ["sigmoid"]},
    "dpo_normalised": {"beta": 5.0, "loss_types": ["sigmoid_norm"]},
    "dpo_nll": {"beta": 0.1, "loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
    "ipo": {"beta": 0.15, "loss_types": ["ipo"]},
}
CPO = {
    "cpo": {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
    "cpo_smoothed": {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.5, "label_smoothing": 0.1},
    "simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.3},
    "simpo_nll": {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.2, "cpo_alpha": 0.7},
}
ORPO = {"orpo": {"beta": 0.1}, "orpo_strong": {"beta": 2.0}}
KTO = {
    "kto": {"beta": 0.1},
    "kto_weighted": {"beta": 0.4, "desirable_weight": 1.33, "undesirable_weight": 0.7},
}


class Accelerator:
    """One process, whose own values are everybody's."""

    device = torch.device("cpu")

    def gather(self, x):
        return x

    gather_for_metrics = gather


def without_init(trainer, **settings):
    """A trainer that has only these settings."""
    found = object.__new__(trainer)
    shared = {
        "accelerator": Accelerator(), "aux_loss_enabled": False, "_total_train_tokens": 0,
        "_tp_size": 1, "_metrics": defaultdict(lambda: defaultdict(list)), "loss_weights": None,
        "model": SimpleNamespace(training=True),
    }  # fmt: skip
    for name, value in (shared | settings).items():
        setattr(found, name, value)
    return found


class Answers:
    """A model with a fused head that answers with given log-probs, by the first input id."""

    def __init__(self, *answers):
        self.answers = answers

    def __call__(self, *, input_ids, labels, **_):
        logp = self.answers[int(input_ids[0, 0])]
        kept = torch.where(labels[:, 1:] != -100, logp[:, 1:], 0.0)
        zeros = torch.zeros_like(kept)
        return SimpleNamespace(
            log_probs=kept, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(),
        )  # fmt: skip


class TwoWords:
    """A model over a vocabulary of two words, of which the first has given log-probs."""

    def __init__(self, logp):
        self.logp = logp

    def __call__(self, input_ids, **_):
        shifted = torch.nn.functional.pad(self.logp[:, 1:], (0, 1), value=-1.0)
        logits = torch.stack([shifted, torch.log(-torch.expm1(shifted))], dim=-1)
        return SimpleNamespace(logits=logits)


def leaf(x):
    """A float64 tensor to differentiate by."""
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def draw(seed, rows):
    """Log-probs, a reference's, masks and where padding begins; exact in float32."""
    rng = np.random.default_rng(seed)
    exact = lambda x: np.float64(np.float32(x))  # noqa: E731
    logp = exact(-rng.gamma(1.5, 0.8, (rows, LENGTH)) - 0.01)
    reference = exact(logp + rng.normal(0, 0.5, logp.shape))
    start = np.repeat(rng.integers(1, 4, rows // 2), 2)[:, None]  # both sides have one prompt
    end = start + rng.integers(1, LENGTH - 3, (rows, 1))
    places = np.arange(LENGTH)
    return logp, reference, (places >= start) & (places < end), places < end


def sides(x):
    """Chosen rows, then rejected ones, as TRL has them."""
    return torch.cat([x[0::2], x[1::2]])


def dpo(settings, logp, reference, mask):
    """The loss by DPOTrainer."""
    trainer = without_init(
        DPOTrainer, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        use_weighting=False,
        **{"loss_weights": [1.0] * len(settings["loss_types"]), "label_smoothing": 0.0, **settings},
    )  # fmt: skip
    ref = sides(torch.tensor(np.where(mask, reference, 0.0).sum(axis=1))).chunk(2)
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": sides(torch.tensor(mask)).long(),
        "ref_chosen_logps": ref[0], "ref_rejected_logps": ref[1],
    }  # fmt: skip
    return trainer._compute_loss(Answers(sides(logp)), inputs, False)


def smoothed(logp, reference, mask):
    """DPO with label smoothing, pair by pair."""
    settings = {"beta": 0.2, "loss_types": ["aot"], "label_smoothing": 0.1}
    pairs = [slice(2 * i, 2 * i + 2) for i in range(PAIRS)]
    return torch.stack([dpo(settings, logp[p], reference[p], mask[p]) for p in pairs]).mean()


def of_logits(trainer, settings, logp, mask, inside):
    """The loss by CPOTrainer or ORPOTrainer."""
    found = without_init(
        trainer, is_encoder_decoder=False, pad_token_id=0, padding_value=0,
        **{"alpha": 0.0, "label_smoothing": 0.0, "cpo_alpha": 0.0, "simpo_gamma": 0.0, **settings},
    )  # fmt: skip
    batch = {}
    for name, rows in (("chosen", slice(0, None, 2)), ("rejected", slice(1, None, 2))):
        zeros = torch.zeros(mask[rows].shape, dtype=torch.long)
        batch |= {
            f"{name}_input_ids": zeros,
            f"{name}_attention_mask": torch.tensor(inside[rows]).long(),
            f"{name}_labels": zeros.masked_fill(torch.tensor(~mask[rows]), -100),
        }
    return found.get_batch_loss_metrics(TwoWords(sides(logp)), batch)[0]


def kto(settings, logp, reference, mask, other, other_reference, other_mask, label):
    """The loss by KTOTrainer."""
    trainer = without_init(
        KTOTrainer, calculate_KL=True, precompute_ref_logps=True, loss_type="kto",
        **{"desirable_weight": 1.0, "undesirable_weight": 1.0, **settings},
    )  # fmt: skip
    total = lambda x, m: torch.tensor(np.where(m, x, 0.0).sum(axis=1))  # noqa: E731
    batch = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": torch.tensor(mask).long(),
        "KL_input_ids": torch.ones(mask.shape, dtype=torch.long),
        "KL_attention_mask": torch.ones(mask.shape, dtype=torch.long),
        "KL_completion_mask": torch.tensor(other_mask).long(),
        "label": torch.tensor(label),
        "ref_logps": total(reference, mask), "ref_KL_logps": total(other_reference, other_mask),
    }  # fmt: skip
    return trainer._compute_loss(Answers(logp, torch.tensor(other)), batch, False)


def solved(loss, logp):
    """(loss, gradient) of a function of log-probs."""
    x = leaf(logp)
    value = loss(x)
    value.backward()
    return value.detach().numpy(), x.grad.numpy()


def main() -> None:
    """Write both files."""
    made_with = {m.__name__: m.__version__ for m in (trl, torch, transformers)}
    logp, reference, mask, inside = draw(0, 2 * PAIRS)
    cases = {
        name: solved(lambda x, s=s: dpo(s, x, reference, mask), logp) for name, s in DPO.items()
    }
    cases["dpo_smoothed"] = solved(lambda x: smoothed(x, reference, mask), logp)
    for trainer, settings in ((CPOTrainer, CPO), (ORPOTrainer, ORPO)):
        for name, s in settings.items():
            cases[name] = solved(lambda x, t=trainer, s=s: of_logits(t, s, x, mask, inside), logp)
    arrays = {"logp": logp, "reference": reference, "mask": mask, "inside": inside}
    save("pairs", arrays, cases, made_with)

    logp, reference, mask, _ = draw(1, 8)
    other, other_reference, other_mask, _ = draw(2, 8)
    label = np.array([1, 0, 0, 1, 1, 0, 1, 1], bool)
    for name, shift in (("kto", 0.0), ("kto_no_drift", 1.0)):
        # without a shift the drift is positive, with one it is negative and counts as 0
        moved = other_reference - 0.4 + 2 * shift
        cases = {
            key: solved(
                lambda x, s=s, m=moved: kto(
                    s, x, reference, mask, other, m, other_mask, label
                ),
                logp,
            )
            for key, s in KTO.items()
        }  # fmt: skip
        arrays = {
            "logp": logp, "reference": reference, "mask": mask, "label": label,
            "other": other, "other_reference": moved, "other_mask": other_mask,
        }  # fmt: skip
        save(name, arrays, cases, made_with)


def save(name, arrays, cases, made_with) -> None:
    """One file: arrays, `<case>/loss`, `<case>/grad`, and the versions as JSON."""
    found = {
        f"{case}/{what}": x
        for case, pair in cases.items()
        for what, x in zip(("loss", "grad"), pair, strict=True)
    }
    np.savez_compressed(GOLDEN / f"{name}.npz", made_with=json.dumps(made_with), **arrays, **found)
    print(name, {case: float(pair[0]) for case, pair in cases.items()})


if __name__ == "__main__":
    main()
