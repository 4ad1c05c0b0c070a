"""`posttrain bench`: operations counted by hand, and every workload once on a very small model."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from posttrain_jax.bench import flops, queued, tokens, tune
from posttrain_jax.bench.workloads import Sizes
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig
from posttrain_jax.models.config import Experts
from posttrain_jax.rollout.continuous import plan_sizes
from posttrain_jax.rollout.request import Rules
from posttrain_jax.rollout.sampling import Sampling

CONFIG = ModelConfig(vocab_size=11, layers=2, width=8, heads=4, kv_heads=2, head_dim=4, ffn=5)
# q 8x16, k and v 8x8 each, o 16x8, gate, up, down 8x5 each.
DENSE = 8 * 16 + 2 * 8 * 8 + 16 * 8 + 3 * 8 * 5


def test_weights_that_a_token_meets():
    assert flops.weights_met(CONFIG) == 2 * DENSE
    sparse = dataclasses.replace(CONFIG, experts=Experts(count=4, active=2, ffn=6))
    attention, router, expert = 8 * 16 + 2 * 8 * 8 + 16 * 8, 8 * 4, 3 * 8 * 6
    assert flops.weights_met(sparse) == 2 * (attention + router + 2 * expert)


def test_attention_counts_the_keys_that_are_seen():
    # Three queries after two others see 3, 4 and 5 keys; 4 heads, 4 wide, scores and values.
    assert flops.attention_flops(CONFIG, 3, before=2) == 2 * (2 * 4 * (4 + 4) * (3 + 4 + 5))
    near = dataclasses.replace(CONFIG, window=4, global_every=2)  # the first layer is local
    assert flops.attention_flops(near, 3, before=2) == 2 * 4 * 8 * ((3 + 4 + 4) + (3 + 4 + 5))


def test_a_forward_by_hand():
    expected = 2 * (2 * DENSE) * 3 + 2 * (2 * 4 * 8 * (1 + 2 + 3)) + 2 * 8 * 11 * 1
    assert flops.forward_flops(CONFIG, 3, head=1) == expected


def test_every_workload_runs(monkeypatch, capsys):
    small = dataclasses.replace(CONFIG, vocab_size=32, width=16, head_dim=8, ffn=32)
    monkeypatch.setattr(tokens, "TINY", small)
    monkeypatch.setattr(flops, "SQUARE", 64)
    arguments = ["sft", "dpo", "sample", "grpo", "ppo", "--steps", "1", "--json", "--batch", "2"]
    arguments += ["--seq", "8", "--masked", "3", "--pairs", "1", "--prompts", "1", "--group", "8"]
    assert tokens.main([*arguments, "--prompt-len", "4", "--max-new", "4"]) == 0
    found = {row["workload"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    counted = {name: row["tokens"] for name, row in found.items()}
    assert counted == {"sft": 16, "dpo": 16, "sample": 32, "grpo": 32, "ppo": 32}
    for row in found.values():
        assert row["tokens_per_s"] > 0 and row["peak_rss_mb"] > 50 and row["needed_gflop"] >= 0
        assert 0 < row["utilisation"] < 1 and row["step_ms"] > 0
        assert "compile_s" in row


def test_the_queues_sequences_in_batches(monkeypatch, capsys):
    """`static_cap` has those of `queue` as the beginnings of rows that all go on to the cap."""
    small = dataclasses.replace(CONFIG, vocab_size=32, width=16, head_dim=8, ffn=32)
    monkeypatch.setattr(tokens, "TINY", small)
    monkeypatch.setattr(flops, "SQUARE", 64)
    monkeypatch.setattr(queued, "QUEUE", 4)
    monkeypatch.setattr(tune, "candidates", lambda derived, *sizes: {"derived": derived})
    names = ["queue", "static", "static_cap"]
    arguments = ["--steps", "1", "--slots", "4", "--group", "4", "--prompt-len", "4", "--json"]
    arguments += ["--max-new", "16", "--shortest", "2"]
    assert tokens.main([*names, *arguments]) == tokens.main(["queue", "--tune", *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["workload"] for row in rows] == [*names, "tune"]
    assert len({row["tokens"] for row in rows[:3]}) == 1
    assert rows[0]["prefilled_tokens"] == 4 * 4 and rows[0]["prefill_share"] == 1 / 4
    assert rows[3]["best"] == "derived" and rows[3]["step_ms"]["derived"] > 0
    given = tokens.parse(["queue", *arguments])
    sizes, mesh = Sizes(**{name: getattr(given, name) for name in Sizes._fields}), make_mesh()
    with jax.set_mesh(mesh):
        work = [tokens.WORKLOADS[n](*tokens.open_model("tiny", mesh), mesh, sizes) for n in names]
        (queue, _), *batches = (each.step() for each in work)
    join = lambda name, parts: np.concatenate([getattr(part, name) for part in parts])  # noqa: E731
    lengths = np.asarray(queue.completion_mask_BT).sum(axis=1)
    assert len({*lengths}) > 3 and lengths.sum() == rows[0]["tokens"] and lengths.max() < 16
    kept = np.arange(16) < lengths[:, None]
    expected = np.where(kept, queue.tokens_BT[:, 4:], 0)
    for parts in batches:
        np.testing.assert_array_equal(np.where(kept, join("tokens_BT", parts)[:, 4:], 0), expected)
    static, whole = (join("completion_mask_BT", parts).sum(axis=1) for parts in batches)
    assert (static == lengths).all() and (whole == 16).all()


def test_sizes_beside_the_derived_ones_differ_in_one_number():
    derived = plan_sizes(32, 64, Rules(Sampling(), 512, 8))
    found = tune.candidates(derived, 512, 512)
    assert found.pop("derived") == derived and len({*found.values()}) == len(found)
    changed = {name.split()[0]: each for name, each in found.items()}
    assert set(changed) == {"threshold", "prefill", "pages", "narrowest"}
    for each in found.values():
        assert sum(a != b for a, b in zip(each, derived, strict=True)) == 1
        assert each.pages >= 32 and each.threshold > 0


def test_an_unknown_workload_is_refused(capsys):
    with pytest.raises(SystemExit):
        tokens.main(["sftt"])
    assert "sftt" in capsys.readouterr().err
