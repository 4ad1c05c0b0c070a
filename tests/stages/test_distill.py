"""Distillation as stages: the cache, a teacher on the mesh, and the student's own samples."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from posttrain_jax import artifacts, interrupt, policy, registry, teacher_cache
from posttrain_jax import settings as stage_settings
from posttrain_jax import teacher as teachers
from posttrain_jax.api import Artifact
from posttrain_jax.artifacts import Record
from posttrain_jax.metrics import read_rows
from posttrain_jax.nonfinite import NonFiniteError
from posttrain_jax.stages import distill
from posttrain_jax.stages.sft import load_rows

STAGES = Path(distill.__file__).parent
WORDS = 656  # of the tiny tokenizer
COMMON = {"tokenizer": "tiny", "chat_template": "tiny", "mesh": {}, "seed": 0}
DATA = {"length": 32, "batch_size": 2}
TRAIN = {**DATA, "steps": 3, "lr": 1e-2, "save_every": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    rows = [
        {"prompt": f"{i} + {2 * i} = ?", "response": f"{3 * i} " * (1 + i % 3)} for i in range(9)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def two(root, make_small):
    """Two policies, as artifacts, and as models."""
    text = policy.open_text(COMMON)
    found = {}
    for seed, name in enumerate(("student", "teacher")):
        made = make_small(seed, vocab_size=WORDS)
        folder = root / name
        hashes = {"tokenizer_hash": text.tokenizer.hash, "template_hash": text.template.hash}
        artifacts.prepare(folder, Record(name, "sft", name[0] * 64, {}, **hashes))
        policy.save_policy(folder, made.model, made.params)
        found[name] = artifacts.finish(folder), made
    return found


@pytest.fixture
def run(root, two, tmp_path):
    """`(kind, inputs, folder=None, **settings) -> Artifact`; inputs by their names in `two`."""

    def go(kind, inputs, folder="", **settings):
        defaults = stage_settings.stage_defaults(STAGES / f"{kind}.py")
        given = settings if "prompts" in defaults else {"data": {"a": {"path": str(
            root / "data.jsonl"
        )}}, **settings}  # fmt: skip
        config = ConfigDict({**COMMON, **stage_settings.fill(defaults, given, "stage")})
        workdir = tmp_path / (folder or kind)
        text = policy.open_text(COMMON)
        if not (workdir / artifacts.RECORD).exists():
            artifacts.prepare(workdir, Record(
                kind, kind, "c" * 64, {}, tokenizer_hash=text.tokenizer.hash,
                template_hash=text.template.hash,
            ))  # fmt: skip
        chosen = {
            role: each if isinstance(each, Artifact) else two[each][0]
            for role, each in inputs.items()
        }
        return registry.load("stages", kind).run(config, workdir, chosen)

    return go


def weights(artifact):
    """The parameters of an artifact on the host."""
    return jax.device_get(policy.load_policy(artifact, policy.open_mesh({"mesh": {}}))[1])


CACHE = {**DATA, "k": 5}


def test_the_cache_holds_the_teachers_distributions(run, two, logp_float64):
    made = run("teacher_logprobs", {"teacher": "teacher"}, **CACHE, temperature=1.5)
    config = ConfigDict({**COMMON, **CACHE, "system": "", "results": (), "data": {"a": {"path": str(
        two["teacher"][0].path.parent / "data.jsonl"
    )}}})  # fmt: skip
    rows, _ = load_rows(config, {}, policy.open_text(COMMON))
    tokens, logp = (np.load(made.path / f"{name}.npy") for name in ("tokens", "logp"))
    exact, place, masses = two["teacher"][1], 0, []
    for row in range(len(rows.tokens)):
        masses.append([])
        for segment in range(1, rows.segments[row].max() + 1):
            here = rows.segments[row] == segment
            after = logp_float64(exact.exact, exact.model.config, rows.tokens[row, here], 1.5)
            for t in np.flatnonzero(rows.mask[row, here]):
                order = np.argsort(-after[t - 1])[:5]
                np.testing.assert_array_equal(tokens[place], order)
                np.testing.assert_allclose(logp[place], after[t - 1][order], rtol=2**-10)
                masses[-1].append(np.exp(after[t - 1][order]).sum())
                place += 1
    assert place == len(tokens) == made.metrics["places"]["mean"]
    mean = np.mean([np.mean(row) for row in masses if row])
    assert made.metrics["mass"]["mean"] == pytest.approx(mean, abs=1e-4)
    assert tokens.dtype == np.uint16 and logp.dtype == np.float16


def test_a_killed_cache_goes_on_where_it_stopped(run, monkeypatch):
    whole = run("teacher_logprobs", {"teacher": "teacher"}, "whole", **CACHE)
    asked = []
    likeliest = teachers.likeliest
    monkeypatch.setattr(
        teachers, "likeliest", lambda *a, **k: (asked.append(1), likeliest(*a, **k))[1]
    )
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: len(asked) == 2)
        with pytest.raises(interrupt.Interrupted):
            run("teacher_logprobs", {"teacher": "teacher"}, "killed", **CACHE)
    killed = run("teacher_logprobs", {"teacher": "teacher"}, "killed", **CACHE)
    batches = -(-int(whole.metrics["rows"]["mean"]) // 2)
    assert len(asked) == batches > 2
    for name in ("tokens.npy", "logp.npy", teacher_cache.ABOUT):
        assert (killed.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_cached_teacher_teaches_what_a_live_one_does(run, root):
    """And float32 caches lose nothing; the cross-entropy mixes in with its coefficient."""
    options = {
        **TRAIN, "temperature": 1.5, "kd_coef": 30.0, "ce_coef": 0.25, "microbatches": 2,
        "loss_options": {"divergence": "jensen_shannon", "beta": 0.2},
    }  # fmt: skip
    kept = run("teacher_logprobs", {"teacher": "teacher"}, **CACHE, temperature=1.5,
               dtype="float32")  # fmt: skip
    student = {"policy": "student"}
    live = run("distill", {**student, "teacher": "teacher"}, "live", **options, k=4)
    cached = run("distill", {**student, "teacher_logprobs": kept}, "cached", **options, k=4)
    for a, b in zip(*(jax.tree.leaves(weights(x)) for x in (live, cached)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    first = read_rows(live.path / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(30 * first["distill"] + 0.25 * first["nll"], rel=1e-5)
    assert first["distill"] > 0.005 and first["nll"] > 1.0 and 0 < first["student_tail"] < 1
    for changes, message in (
        ({"length": 40}, "are of other rows"),
        ({"data": {"a": {"path": str(root / "data.jsonl"), "skip": 1}}}, "are of other rows"),
        ({"temperature": 1.0}, "temperature=1.0, but stage 'teacher_logprobs'"),
        ({"k": 6}, "k=6, but stage"),
    ):
        with pytest.raises(ValueError, match=message):
            run("distill", {**student, "teacher_logprobs": kept}, **{**options, **changes})


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_a_teacher_has_nothing_to_teach_itself(run, tail):
    made = run(
        "distill", {"policy": "student", "teacher": "student"}, **{**TRAIN, "steps": 1}, k=7,
        loss_options={"tail": tail, "divergence": "reverse"},
    )  # fmt: skip
    row = read_rows(made.path / "metrics.jsonl")[0]
    assert abs(row["loss"]) < 1e-6 and row["grad_norm"] < 1e-5
    assert row["teacher_agreement"] == pytest.approx(1.0)
    assert row["student_tail"] == pytest.approx(row["teacher_tail"], abs=1e-6)


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        ({}, {"k": 3}, "k is set, but without a teacher nothing reads it"),
        ({}, {"loss_options": {"beta": 0.1}}, "loss_options is set, but without a teacher"),
        ({}, {}, "distill trains on the teacher's responses only: data.a must be"),
        ({"teacher": "teacher"}, {}, "k=0: with an input 'teacher' set how many tokens"),
        ({"teacher": "teacher", "teacher_logprobs": "teacher"}, {}, "give one of the two"),
        ({"teacher_logprobs": "teacher"}, {}, "holds no teacher's log-probs"),
    ],
)
def test_what_does_not_go_together_is_named(run, inputs, settings, message):
    with pytest.raises(ValueError, match=message):
        run("distill", {"policy": "student", **inputs}, **TRAIN, **settings)


PROMPTS = {
    "rollout_size": 16, "group_size": 2, "prompt_length": 16, "max_new": 6, "lr": 1e-2,
    "save_every": 0, "temperature": 1.2, "microbatches": 2,
}  # fmt: skip


@pytest.fixture
def on_policy(run, root):
    def go(folder, **settings):
        prompts = {"a": {"data": {"a": {"path": str(root / "data.jsonl")}}}}
        return run(
            "on_policy_distill", {"policy": "student", "teacher": "teacher"}, folder,
            **{**PROMPTS, "prompts": prompts, **settings},
        )  # fmt: skip

    return go


@pytest.mark.parametrize(("k", "steps", "size"), [(0, 30, 64), (64, 12, 16)])
def test_the_student_moves_towards_its_teacher_on_its_own_samples(on_policy, k, steps, size):
    """With one number a token from the teacher it takes more samples."""
    made = on_policy(f"k{k}", k=k, steps=steps, rollout_size=size, lr=2e-2)
    rows = read_rows(made.path / "metrics.jsonl")
    kl = [row["loss" if k else "sampled_kl"] for row in rows]
    assert np.mean(kl[-4:]) < 0.7 * np.mean(kl[:4])
    assert all(row["tokens"] > 0 for row in rows)
    if not k:
        assert max(row["logprob_gap"] for row in rows) < 1e-4
        assert rows[0]["ratio"] == pytest.approx(1.0, abs=1e-4)


def test_a_killed_run_samples_what_it_would_have(on_policy, monkeypatch):
    settings = {"k": 8, "steps": 4}
    whole = on_policy("whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(
            interrupt, "requested",
            lambda: len(read_rows(whole.path.parent / "killed" / "metrics.jsonl")) == 2,
        )  # fmt: skip
        with pytest.raises(interrupt.Interrupted):
            on_policy("killed", **settings)
    killed = on_policy("killed", **settings)
    for a, b in zip(*(jax.tree.leaves(weights(x)) for x in (whole, killed)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sizes_that_do_not_divide_are_named(on_policy):
    for name in ("group_size", "microbatches"):
        with pytest.raises(ValueError, match=f"rollout_size=16 is not a multiple of {name}=3"):
            on_policy("wrong", k=1, steps=1, **{name: 3})
    with pytest.raises(ValueError, match=r"temperature=0\.0: expected a number above 0"):
        on_policy("greedy", k=1, steps=1, temperature=0.0)


def test_stages_that_learn_nothing_stop(on_policy, run, two, tmp_path):
    """After the first update no weight is a number; the batch of the last one is kept."""
    lost = {"lr": float("nan"), "stop_after_skipped": 2, "save_every": 0}
    with pytest.raises(NonFiniteError, match="in 2 updates in a row, up to update 3"):
        run("sft", {"policy": "student"}, **{**TRAIN, **lost, "steps": 5})
    with pytest.raises(NonFiniteError, match="in 2 updates in a row, up to update 3"):
        on_policy("lost", **{**lost, "k": 2, "steps": 5, "rollout_size": 4})
    for folder in ("sft", "lost"):
        assert (tmp_path / folder / "nonfinite-3.npz").is_file()
