"""What the pool knows already: equal questions about a cached verifier are asked once."""

import pytest

from posttrain_jax.verifiers import cache
from posttrain_jax.verifiers.pool import Pool

TELL = """
from posttrain_jax.api import Verdict
{cached}
def score(response, example, *, scale=1.0):
    if response == "raise":
        raise ValueError("no")
    with open(example["log"], "a") as file:
        file.write(response + "\\n")
    return Verdict(scale * len(response), "pass" if response != "slow" else "timeout")
"""


@pytest.fixture
def counting(tmp_path):
    """A verifier that writes down what it is asked, and the log."""

    def make(cached):
        path, log = tmp_path / "tell.py", tmp_path / "log"
        path.write_text(TELL.format(cached="CACHED = True" if cached else ""))
        return str(path), {"log": str(log)}, lambda: log.read_text().split()

    return make


def test_a_cached_verifier_is_asked_once(counting):
    verifier, example, asked = counting(True)
    with Pool({"a": {"verifier": verifier}}, workers=1) as pool:
        first = pool.verdicts(["x", "yy", "x"], [example] * 3)
        again = pool.verdicts(["yy", "zzz"], [example] * 2)
        other = pool.verdicts(["yy"], [{**example, "more": 1}])
        counts = pool.counts
    assert asked() == ["x", "yy", "x", "zzz", "yy"]  # within one batch nothing is known yet
    assert [v[0].score for v in (*first.verdicts, *again.verdicts, *other.verdicts)] == [
        1, 2, 1, 2, 3, 2,
    ]  # fmt: skip
    assert again.seconds_BW[0, 0] == 0
    assert (counts["cached"], counts["verdicts"], counts["samples"]) == (1, 5, 6)


def test_a_question_is_hashed_once(counting, monkeypatch):
    verifier, example, _ = counting(True)
    hashed = []
    plain = cache.hashlib.sha256
    monkeypatch.setattr(cache.hashlib, "sha256", lambda data: hashed.append(data) or plain(data))
    with Pool({"a": {"verifier": verifier}}, workers=1) as pool:
        pool.verdicts(["x", "yy"], [example] * 2)
        assert len(hashed) == 2
        pool.verdicts(["x", "z"], [example] * 2)
    assert len(hashed) == 4


def test_what_depended_on_the_host_is_not_kept(counting):
    verifier, example, asked = counting(True)
    with Pool({"a": {"verifier": verifier}}, workers=1) as pool:
        for _ in range(2):
            pool.verdicts(["slow", "raise"], [example] * 2)
        assert pool.counts["cached"] == 0
    assert asked() == ["slow", "slow"]


def test_terms_with_other_options_or_spans_are_other_questions(counting):
    verifier, example, asked = counting(True)
    terms = {
        "a": {"verifier": verifier},
        "b": {"verifier": verifier, "scale": 2.0},
        "c": {"verifier": verifier, "span": "thought"},
    }
    response = "<think>xx</think>y"
    with Pool(terms, workers=1) as pool:
        for _ in range(2):
            rewards_BW, _ = pool([response], [example])
            assert rewards_BW.tolist() == [[18, 36, 2]]
    assert asked() == [response, response, "xx"]


def test_others_are_asked_every_time(counting):
    verifier, example, asked = counting(False)
    with Pool({"a": {"verifier": verifier}}, workers=1) as pool:
        pool(["x"], [example])
        pool(["x"], [example])
    assert asked() == ["x", "x"]
