"""Batches in parts, and programs whose own limits are wider than the pool's."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from posttrain_jax.bench.verify import children
from posttrain_jax.verifiers.pool import Pool

JUDGE = {"judge": {"verifier": str(Path(__file__).with_name("judge.py"))}}
CODE = {"code": {"verifier": "code"}}


def doubled(program, **limits):
    tests = {"type": "call", "fn": "f", "cases": [{"args": [2], "expected": 4}]}
    return program, {"tests": tests, "limits": {"cpu_s": 2.0, **limits}}


def test_parts_come_back_in_the_order_of_the_batch():
    order = np.random.default_rng(0).permutation(200)
    with Pool(JUDGE, workers=2) as pool:
        parts = [
            (places, pool.submit([f"r{i}" for i in places], [{"value": int(i)} for i in places]))
            for places in np.split(order, [1, 90, 90, 150])
        ]
        merged = pool.gather(parts)
    assert merged.rewards_BW[:, 0].tolist() == list(range(200))
    assert [row[0].detail for row in merged.verdicts] == [f"r{i}" for i in range(200)]
    assert merged.mask_B.all() and merged.seconds_BW.shape == (200, 1)


def test_failures_that_are_few_in_each_part_are_counted_together():
    with Pool(JUDGE, workers=1) as pool:
        futures = [pool.submit(["raise"], [{"value": 0}]) for _ in range(4)]
        with pytest.raises(RuntimeError, match=r"failed on 4 of 4 samples, .* row 0: "):
            pool.gather([([place], future) for place, future in enumerate(futures)])
        few = pool.gather([([place], future) for place, future in enumerate(futures[:3])])
    assert not few.mask_B.any()


def test_waiting_for_a_jailed_program_is_not_the_verifiers_time():
    """The pool allows a verifier 0.4 s by the clock; the program sleeps for a second."""
    slow = doubled("import time\ntime.sleep(1.0)\ndef f(x):\n    return 2 * x\n", wall_s=8.0)
    with Pool(CODE, workers=1, deadline=0.4, wall_factor=1) as pool:
        found = pool.verdicts([slow[0]], [slow[1]])
        assert pool.counts["timeouts"] == 0
    assert found.verdicts[0][0].status == "pass"
    assert 1.0 < found.seconds_BW[0, 0] < 8.0


def test_timeouts_in_the_jail_are_counted():
    hang, example = doubled("def f(x):\n    while True:\n        pass\n", cpu_s=0.2)
    with Pool(CODE, workers=1) as pool:
        assert pool.verdicts([hang], [example]).verdicts[0][0].status == "timeout"
        assert (pool.counts["timeouts"], pool.counts["restarts"]) == (1, 0)


def test_a_jail_killed_in_the_middle_of_a_batch_costs_no_verdict():
    right, wrong = "def f(x):\n    return 2 * x  # {}\n", "def f(x):\n    return 3 * x  # {}\n"
    items = [doubled((wrong if i % 3 == 0 else right).format(i)) for i in range(120)]
    with Pool(CODE, workers=2) as pool:
        future = pool.submit([item[0] for item in items], [item[1] for item in items])
        killer = threading.Timer(
            0.15, lambda: [os.kill(z, signal.SIGKILL) for p in pool.pids for z in children(p)]
        )
        killer.start()
        found = future.result()
        killer.join()
        assert pool.counts["poisoned"] == 0
    assert [row[0].status for row in found.verdicts] == [
        "fail" if i % 3 == 0 else "pass" for i in range(120)
    ]


def test_a_program_that_kills_its_jail_twice_is_kept_for_inspection(tmp_path, monkeypatch):
    """Nothing is known to do so; a verifier stands in for it that says it happened."""
    stand_in = tmp_path / "poison.py"
    stand_in.write_text(
        "from posttrain_jax.verifiers.jail import Poisoned\n"
        "def score(response, example):\n    raise Poisoned('a job ended two zygotes')\n"
    )
    quarantine = tmp_path / "quarantine.jsonl"
    with Pool({"a": {"verifier": str(stand_in)}}, workers=1, quarantine=quarantine) as pool:
        found = pool.verdicts(["x"], [{}])
        assert pool.counts["poisoned"] == 1
    assert (found.verdicts[0][0].score, found.verdicts[0][0].status) == (0.0, "poisoned")
    assert found.mask_B.all()
    assert '"reason": "a job ended two zygotes"' in quarantine.read_text()


def test_the_workers_jails_end_with_the_pool():
    with Pool(CODE, workers=1) as pool:
        pool(*map(list, zip(*[doubled("def f(x):\n    return x * 2\n")], strict=True)))
        family = [pid for worker in pool.pids for pid in (worker, *children(worker))]
        assert len(family) >= 2
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        assert time.monotonic() < end
        time.sleep(0.05)
