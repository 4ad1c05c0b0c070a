"""A verifier for the tests that calls about half of what an untrained model says right."""

from posttrain_jax.api import Verdict


def score(response, example):
    """1 where the number of characters of a response is even."""
    del example
    return Verdict(float(len(response) % 2 == 0))
