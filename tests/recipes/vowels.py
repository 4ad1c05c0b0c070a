"""A verifier for the tests: a smooth score that even an untrained model varies in."""

from posttrain_jax.api import Verdict


def score(response, example):
    """The share of vowels among the characters of a response."""
    del example
    return Verdict(sum(c in "aeiouAEIOU" for c in response) / max(1, len(response)))
