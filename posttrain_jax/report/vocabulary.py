"""What the metric names of a run mean: label, unit and one plain sentence for each.

A name that is not listed is shown as it is, as a plain number: a new metric needs no change here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from posttrain_jax.report.records import Metric

GAP_LIMIT = 1e-4
"""Largest allowed gap between the sampler's and the trainer's log-probs in float32."""


class Term(NamedTuple):
    """How a metric is written: shares are stored in [0, 1] and shown in percent."""

    label: str
    unit: str = ""
    share: bool = False
    meaning: str = ""


TERMS = {
    "pass@1": Term("pass@1", "%", True, "share of answers sampled at temperature 1 that are right"),
    "greedy": Term("greedy", "%", True, "share of most-likely answers that are right"),
    "length": Term("length", "tokens", False, "mean tokens of a completion"),
    "format": Term("format", "%", True, "share of responses in the think / answer form"),
    "language": Term(
        "language consistency", "%", True, "share of the reasoning in the prompt's language"
    ),
    "refuse_harmful": Term("refuses harmful", "%", True, "harmful requests refused"),
    "answer_harmless": Term("answers harmless", "%", True, "harmless look-alikes answered"),
    "helpful": Term("helpful", "%", True, "chat requests answered as asked"),
    "finished": Term("finished", "%", True, "responses that ended before the length limit"),
    "thought": Term("chain written", "%", True, "responses with words in their chain of thought"),
    "accuracy": Term("accuracy", "%", True, "share of rollouts with the right answer"),
    "pair_accuracy": Term("pair accuracy", "%", True, "pairs ranked as the preference says"),
    "problems": Term("problems", "", False, "problems that are compared"),
    "on_front": Term("on the front", "", False, "policies that no other is better than in both"),
    "hypervolume": Term("dominated area", "", False, "area above the origin that is dominated"),
    "margin": Term("margin", "", False, "reward of the chosen response minus the rejected one's"),
    "chosen_reward": Term("chosen reward", "", False, "as the loss sees it, against the reference"),
    "rejected_reward": Term("rejected reward", "", False, "as of the chosen response"),
    "chosen_logp": Term("chosen log-prob", "nats", False, "of the whole chosen response"),
    "rejected_logp": Term("rejected log-prob", "nats", False, "of the whole rejected response"),
    "chosen_tokens": Term("chosen length", "tokens", False, "tokens that are compared"),
    "rejected_tokens": Term("rejected length", "tokens", False, "tokens that are compared"),
    "nll": Term("likelihood term", "nats", False, "of the chosen responses, as it is weighted"),
    "equal_sides": Term("equal sides", "", False, "pairs left out: both responses are the same"),
    "empty_response": Term("empty responses", "", False, "pairs left out: a response says nothing"),
    "all_masked": Term("nothing to compare", "", False, "pairs left out: no token bears weight"),
    "too_long": Term("too long", "", False, "left out: over the length limit"),
    "no_pair": Term("prompts without a pair", "", False, "their samples do not differ enough"),
    "label_accuracy": Term("label accuracy", "%", True, "single responses labelled rightly"),
    "step_accuracy": Term("step accuracy", "%", True, "steps labelled rightly, right or wrong"),
    "first_error_f1": Term(
        "first-error F1", "%", True, "of finding the first wrong step, or that there is none"
    ),
    "found_error": Term("first error found", "%", True, "of the solutions that have one"),
    "passed_right": Term("passed as right", "%", True, "of the solutions that are"),
    "beam_best": Term("best beam", "%", True, "prompts whose highest-scored beam is right"),
    "beam_weighted": Term("weighted beams", "%", True, "votes of the beams by their scores"),
    "beam_majority": Term("beams' majority", "%", True, "votes of the beams, one each"),
    "beam_any": Term("any beam", "%", True, "prompts with a right beam"),
    "tokens_sampled": Term("tokens sampled", "tokens", False, "for a prompt, dropped steps too"),
    "calibration_error": Term(
        "calibration error", "%", True, "mean gap between confidence and share that was right"
    ),
    "reward": Term("reward", "", False, "mean weighted reward of a rollout"),
    "loss": Term("loss", "", False, "the objective, mean over its tokens"),
    "kl": Term("KL", "nats", False, "to the reference (k3), mean over tokens"),
    "entropy": Term("entropy", "nats", False, "mean entropy of the next-token distribution"),
    "logprob_gap": Term(
        "log-prob gap", "nats", False, "largest difference between sampler and trainer"
    ),
    "sampling_gap": Term(
        "sampling gap", "nats", False, "largest log-prob change by temperature, top-k, top-p"
    ),
    "router_load_max": Term("busiest expert", "x", False, "its load over an even share"),
    "router_load_min": Term("idlest expert", "x", False, "its load over an even share"),
    "router_entropy": Term("router entropy", "nats", False, "of its distribution over experts"),
    "router_dropped": Term("dropped choices", "%", True, "token-choices that no expert answered"),
    "skipped": Term("skipped updates", "", False, "gradient not finite; counted from the start"),
    "tokens": Term("tokens", "", False, "tokens sampled in this step"),
    "clip_fraction": Term("clipped ratios", "%", True, "share of tokens whose ratio was clipped"),
    "all_equal_groups": Term(
        "all-equal groups", "%", True, "groups whose rollouts all got one reward: no gradient"
    ),
    "groups_of_one": Term("groups of one", "%", True, "groups with one valid rollout at most"),
    "redraws": Term("redraws", "", False, "further draws for groups of unequal rewards"),
    "replaced_groups": Term("replaced groups", "", False, "all-equal groups that gave their place"),
    "kl_in_reward": Term("KL in the reward", "", False, "what a rollout's reward loses by it"),
    "greedy_reward": Term("greedy reward", "", False, "mean reward of the greedy responses"),
    "entropy_coef": Term("entropy coefficient", "", False, "of the bonus, steered to a target"),
    "equal_to_greedy": Term(
        "equal to greedy", "%", True, "rollouts with the reward of the greedy one: no gradient"
    ),
    "ratio": Term("ratio", "", False, "mean likelihood ratio to the rollout's policy"),
    "off_policy_truncated": Term("truncated weights", "%", True, "tokens whose weight was cut off"),
    "off_policy_masked": Term("masked tokens", "%", True, "tokens masked for being off-policy"),
    "off_policy_weight": Term("off-policy weight", "", False, "mean importance weight of a token"),
    "value_loss": Term("value loss", "", False, "half the squared error of the values, clipped"),
    "value_clip_fraction": Term("clipped values", "%", True, "tokens whose value was clipped"),
    "value_grad_norm": Term("value gradient norm", "", False, "the value model's, before clipping"),
    "value": Term("value", "", False, "mean value of a token's state, before the updates"),
    "return": Term("return", "", False, "mean of what the values are to be"),
    "explained_variance": Term(
        "explained variance", "%", True, "share of the returns' variance that the values explain"
    ),
    "truncated": Term("truncated", "%", True, "rollouts cut at the length limit"),
    "masked": Term("masked", "%", True, "rollouts left out of the loss (verifier failed)"),
    "tokens_per_second": Term("throughput", "tokens / s", False, "tokens handled a second"),
    "grad_norm": Term("gradient norm", "", False, "global norm before clipping"),
    "learning_rate": Term("learning rate", "", False, "step size of the optimizer"),
    "distill": Term("divergence", "nats", False, "from the teacher, mean over tokens"),
    "sampled_kl": Term("sampled KL", "nats", False, "to the teacher, one sample a token"),
    "teacher_tail": Term("teacher's tail", "%", True, "its mass outside of its k tokens"),
    "student_tail": Term("student's tail", "%", True, "its mass outside of the teacher's k tokens"),
    "teacher_agreement": Term(
        "agreement", "%", True, "tokens where teacher and student rank the same one first"
    ),
    "mass": Term("mass kept", "%", True, "of the teacher's distribution, in its k tokens"),
}
_FAMILIES = (
    (
        r"pass@(\w+)",
        Term("pass@{}", "%", True, "share of prompts with a right answer in k samples"),
    ),
    (r"maj@(\w+)", Term("maj@{}", "%", True, "share of prompts whose majority answer is right")),
    (r"best@(\w+)", Term("best of {}", "%", True, "prompts whose highest-scored sample is right")),
    (
        r"weighted@(\w+)",
        Term(
            "weighted vote of {}", "%", True, "prompts whose answer of the largest score is right"
        ),
    ),
    (r"reward/(.+)", Term("{}", "", False, "mean score of this reward term")),
    (r"seconds_(.+)", Term("{} time", "s", False, "seconds a step spent here")),
)
_ORDER = ["pass@1", "greedy", "maj@", "pass@", "length", "format", "language"]


def term(name: str) -> Term:
    """The entry of a metric; `greedy/logic` reads as `greedy`, labelled `logic`."""
    if name in TERMS:
        return TERMS[name]
    for pattern, entry in _FAMILIES:
        match = re.fullmatch(pattern, name)
        if match and "/" not in match[1]:
            return entry._replace(label=entry.label.format(spoken(match[1])))
    qualified = re.fullmatch(r"(.+) (\(.+\))", name)
    if qualified:
        entry = term(qualified[1])
        return entry._replace(label=f"{entry.label} {qualified[2]}")
    base, slash, task = name.partition("/")
    if slash:
        return term(base)._replace(label=spoken(task))
    return Term(spoken(name))


def column_order(name: str) -> tuple[int, str]:
    """Sort key of table columns: the usual metrics first, then by name."""
    for rank, known in enumerate(_ORDER):
        if name == known or (known.endswith("@") and name.startswith(known)):
            return rank, re.sub(r"\d+", lambda digits: digits[0].zfill(6), name)
    listed = list(TERMS)
    return len(_ORDER) + (listed.index(name) if name in listed else len(listed)), name


def spoken(name: str) -> str:
    """`all_equal_groups` -> `all equal groups`."""
    return name.replace("_", " ").strip() or name


def plain(value: float | None) -> str:
    """A number in at most four significant digits, never in more room than it needs."""
    if value is None:
        return "–"
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3g}" if size < 1 else f"{value:.{1 if size >= 100 else 2}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def show(name: str, value: float | None) -> str:
    """A value of a metric in its unit, without the unit: `0.7362` of pass@1 is `73.6`."""
    if value is None:
        return "–"
    if term(name).share:
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if name == "length" else plain(value)


def show_error(name: str, metric: Metric) -> str:
    """The standard error as `±1.9` in the metric's unit; empty where there is none."""
    if metric.stderr is None:
        return ""
    return f"±{show(name, metric.stderr)}"


def with_unit(name: str, value: float | None) -> str:
    """A value with its unit, for sentences and labels: `73.6 %`, `27.1 tokens`."""
    return f"{show(name, value)} {term(name).unit}".strip()


def duration(seconds: float | None) -> str:
    """`95.2` -> `1 min 35 s`; below ten seconds with one decimal."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
