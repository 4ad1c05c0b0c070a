import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from posttrain_jax.verifiers.pool import Pool

ROOT = Path(__file__).parents[2]
JUDGE = {"judge": {"verifier": str(Path(__file__).with_name("judge.py"))}}


def run(pool, responses):
    return pool.verdicts(responses, [{"value": i} for i in range(len(responses))])


def alive(pid):
    """Whether a process runs; a zombie doesn't."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def pool():
    with Pool(JUDGE, workers=2, deadline=0.5, wall_factor=10) as made:
        yield made


def test_thousands_keep_their_order(pool):
    out = run(pool, [f"r{i}" for i in range(3000)])
    np.testing.assert_array_equal(out.rewards_BW[:, 0], np.arange(3000))
    assert [row[0].detail for row in out.verdicts] == [f"r{i}" for i in range(3000)]
    assert out.mask_B.all()
    assert out.rewards_BW.dtype == np.float32


def test_terms_are_columns_with_options_and_weights():
    terms = {
        "twice": {**JUDGE["judge"], "scale": 2.0, "weight": 0.5},
        "format": {"verifier": "format"},
    }
    with Pool(terms, workers=1) as pool:
        rewards_BW, mask_B = pool(
            ["<think>a</think><answer>b</answer>", "x"], [{"value": 3}, {"value": 4}]
        )
        assert pool.names == ("twice", "format")
        assert pool.weights == (0.5, 1.0)
    np.testing.assert_array_equal(rewards_BW, [[6, 1], [8, 0]])
    assert mask_B.tolist() == [True, True]


@pytest.mark.parametrize("hang", ["spin", "stuck", "sleep 600"])
def test_only_the_culprit_times_out(pool, hang):
    before = pool.counts
    responses = ["r"] * 40
    responses[17] = hang
    out = run(pool, responses)
    want = np.arange(40.0)
    want[17] = 0
    np.testing.assert_array_equal(out.rewards_BW[:, 0], want)
    assert [row[0].status for row in out.verdicts].count("timeout") == 1
    assert out.verdicts[17][0].status == "timeout"
    assert out.mask_B.all()
    assert pool.counts["timeouts"] == before["timeouts"] + 1
    assert pool.counts["restarts"] == before["restarts"] + 1


def test_a_sympy_bomb_times_out_and_its_neighbours_are_scored():
    answers = ["8"] * 9
    answers[4] = "e^{e^{e^{100}}}"
    with Pool({"a": {"verifier": "math_answer"}}, workers=1, deadline=1.0, wall_factor=30) as pool:
        out = pool.verdicts([f"<answer>{a}</answer>" for a in answers], [{"answer": "8"}] * 9)
    assert [row[0].status for row in out.verdicts] == ["pass"] * 4 + ["timeout"] + ["pass"] * 4


def test_a_verifier_that_kills_its_worker_is_poisoned(pool, tmp_path):
    quarantine = tmp_path / "quarantine.jsonl"
    with Pool(JUDGE, workers=1, quarantine=quarantine) as own:
        out = run(own, ["r", "die", "r"])
        assert own.counts["deaths"] == 2
        assert own.counts["poisoned"] == 1
    assert [row[0].status for row in out.verdicts] == ["pass", "poisoned", "pass"]
    assert out.rewards_BW[:, 0].tolist() == [0, 0, 2]
    assert out.mask_B.all()
    (line,) = quarantine.read_text().splitlines()
    assert '"response": "die"' in line and '"value": 1' in line


def test_a_death_is_tried_again(pool, tmp_path):
    before = pool.counts
    out = run(pool, ["r", f"die_once {tmp_path / 'died'}", "r"])
    assert out.rewards_BW[:, 0].tolist() == [0, 1, 2]
    assert pool.counts["deaths"] == before["deaths"] + 1
    assert pool.counts["poisoned"] == before["poisoned"]


def test_a_worker_killed_in_the_middle_of_a_batch_changes_nothing():
    with Pool(JUDGE, workers=2, deadline=30) as pool:
        wait_until(lambda: len(pool.pids) == 2)
        future = pool.submit(["sleep 0.02"] * 200, [{"value": i} for i in range(200)])
        time.sleep(0.1)
        victim = pool.pids[0]
        os.kill(victim, signal.SIGKILL)
        out = future.result()
        assert pool.counts["deaths"] == 1
        assert victim not in pool.pids
    np.testing.assert_array_equal(out.rewards_BW[:, 0], np.arange(200))
    assert {row[0].status for row in out.verdicts} == {"pass"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("raise", "ZeroDivisionError: asked to"), ("float", "returned float"), ("nan", "nan")],
)
def test_a_verifier_that_raises_masks_its_sample(pool, bad, reason):
    before = pool.counts
    out = run(pool, ["r", bad, "r", "r"])
    assert out.mask_B.tolist() == [True, False, True, True]
    assert out.rewards_BW[:, 0].tolist() == [0, 0, 2, 3]
    assert out.verdicts[1][0].status == "infra_error"
    assert reason in out.verdicts[1][0].detail
    assert pool.counts["infra_errors"] == before["infra_errors"] + 1


def test_too_many_failures_stop_the_batch_and_say_why(pool):
    run(pool, ["raise"] * 3 + ["r"] * 60)  # few enough
    with pytest.raises(
        RuntimeError, match=r"4 of 64 samples.*ZeroDivisionError: asked to.*4 times"
    ):
        run(pool, ["raise"] * 4 + ["r"] * 60)
    run(pool, ["raise"] * 5 + ["r"] * 995)  # 0.5 %
    with pytest.raises(RuntimeError, match="6 of 1000"):
        run(pool, ["raise"] * 6 + ["r"] * 994)
    assert run(pool, ["r", "r"]).mask_B.all()


def test_what_a_verifier_prints_or_reads_does_not_reach_the_protocol(pool):
    out = run(pool, ["print", "r"])
    assert [row[0].status for row in out.verdicts] == ["pass", "pass"]
    assert out.verdicts[0][0].detail == ""


def test_text_survives_the_wire(pool):
    odd = ["", "\ud800 lone", "中文 \U0001f600", "\0\n\r\u2028", "x" * 300_000]
    out = run(pool, odd)
    assert [row[0].detail for row in out.verdicts] == [text[:2000] for text in odd]


def test_workers_hold_no_jax_and_no_secrets(pool, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    terms = {**JUDGE, "task": {"verifier": "task_answer"}, "words": {"verifier": "language"}}
    example = {"value": 0, "language": "en", "answer": "1"}
    with Pool(terms, workers=1) as own:
        out = own.verdicts(["modules", "environment"], [example] * 2)
    assert out.verdicts[0][0].detail == ""
    assert "SOME_TOKEN" not in out.verdicts[1][0].detail
    assert "PATH" in out.verdicts[1][0].detail


def test_empty_and_uneven_batches(pool):
    rewards_BW, mask_B = pool([], [])
    assert rewards_BW.shape == (0, 1)
    assert mask_B.shape == (0,)
    with pytest.raises(ValueError, match="2 responses for 1 examples"):
        pool(["a", "b"], [{}])


def test_batches_in_flight_together_do_not_mix(pool):
    futures = [
        pool.submit([f"{k}-{i}" for i in range(50)], [{"value": 100 * k + i} for i in range(50)])
        for k in range(6)
    ]
    for k, future in reversed(list(enumerate(futures))):
        out = future.result()
        np.testing.assert_array_equal(out.rewards_BW[:, 0], 100 * k + np.arange(50))


def test_close_ends_and_reaps_the_workers():
    pool = Pool(JUDGE, workers=2)
    wait_until(lambda: len(pool.pids) == 2)
    pids = pool.pids
    pending = pool.submit(["sleep 60"], [{"value": 1}])
    pool.close()
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(RuntimeError, match="closed before"):
        pending.result(timeout=1)
    with pytest.raises(RuntimeError, match="pool is closed"):
        run(pool, ["r"])


TRAINER = """
import signal, sys, time
# Ignored where the tests are a shell's background job.
signal.signal(signal.SIGINT, signal.default_int_handler)
from posttrain_jax.verifiers.pool import Pool
pool = Pool({{"judge": {{"verifier": {judge!r}}}}}, workers=2, deadline=600)
while len(pids := pool.pids) < 2:
    time.sleep(0.01)
pool.submit(["spin", "r", "spin"], [{{"value": 1}}] * 3)
time.sleep(0.2)
try:
    print(*pids, flush=True)
    time.sleep({seconds})
except KeyboardInterrupt:
    print("caught", pool.pids == pids, flush=True)
"""


@pytest.fixture
def start_trainer():
    """Starts a trainer that sleeps so many seconds; gives it and its workers' process ids."""
    trainers = []

    def start(seconds):
        script = TRAINER.format(judge=JUDGE["judge"]["verifier"], seconds=seconds)
        trainer = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        trainers.append(trainer)
        assert trainer.stdout is not None
        return trainer, [int(pid) for pid in trainer.stdout.readline().split()]

    yield start
    for trainer in trainers:
        trainer.kill()
        trainer.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal of a parent is Linux's")
def test_workers_die_with_a_killed_trainer_even_while_they_spin(start_trainer):
    trainer, pids = start_trainer(600)
    assert len(pids) == 2 and all(map(alive, pids))
    trainer.kill()
    trainer.communicate()
    wait_until(lambda: not any(map(alive, pids)))


def test_a_trainer_that_ends_without_closing_ends_and_leaves_no_worker(start_trainer):
    trainer, pids = start_trainer(0)
    _, errors = trainer.communicate(timeout=60)
    assert (trainer.returncode, errors) == (0, "")
    assert not any(map(alive, pids))


def test_ctrl_c_reaches_the_trainer_only(start_trainer):
    trainer, pids = start_trainer(600)
    assert all(os.getsid(pid) == pid for pid in pids)
    trainer.send_signal(signal.SIGINT)
    said, errors = trainer.communicate(timeout=60)
    assert (said, errors) == ("caught True\n", "")


def test_a_worker_that_cannot_start_says_why(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import sys\nfrom pathlib import Path\n"
        "if 'posttrain_jax.verifiers.pool' not in sys.modules:\n    import no_such_module\n"
        "def score(response, example): ...\n"
    )
    with (
        Pool({"x": {"verifier": str(broken)}}, workers=1) as pool,
        pytest.raises(RuntimeError, match=r"(?s)could not start.*no_such_module"),
    ):
        pool(["a"], [{}])


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ({"a": {"weight": 1.0}}, ValueError, "'verifier' is None"),
        ({"a": {"verifier": "formt"}}, ValueError, "Did you mean 'format'"),
        ({"a": {"verifier": "pool"}}, ValueError, "no score"),
        ({"a": {"verifier": "nowhere.py"}}, ValueError, "no such file"),
        ({"a": {"verifier": "format", "thinktag": "t"}}, TypeError, "thinktag"),
        ({"a": {"verifier": "format", "think_tag": {1}}}, TypeError, "term 'a'.*JSON"),
    ],
)
def test_wrong_terms_are_named_at_once(terms, error, message):
    with pytest.raises(error, match=message):
        Pool(terms)


def test_an_example_that_is_not_json_fails_its_batch_only(pool):
    with pytest.raises(TypeError, match="JSON"):
        pool(["r"], [{"value": {1}}])
    assert run(pool, ["r", "r"]).rewards_BW[:, 0].tolist() == [0, 1]


def test_a_pool_without_terms_keeps_every_sample():
    with Pool({}) as pool:
        rewards, mask = pool(["a", "b"], [{}, {}])
    assert rewards.shape == (2, 0) and mask.tolist() == [True, True]
