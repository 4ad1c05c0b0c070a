"""Specs such as `tiny:base` to sizes."""

import pytest

from posttrain_jax.models import find_config, parameter_count
from posttrain_jax.models.tiny import SIZES


def test_changes_replace_fields():
    config = find_config("tiny:base", vocab_size=511, remat="full")
    assert (config.vocab_size, config.remat, config.width) == (511, "full", SIZES["base"].width)
    assert find_config("tiny:student") == SIZES["student"]


def test_one_more_token_is_one_more_embedding():
    counts = [parameter_count(find_config("tiny:base", vocab_size=n)) for n in (511, 512)]
    assert counts[1] - counts[0] == SIZES["base"].width


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tiny:huge", r"model 'tiny:huge': tiny has the sizes \['base', 'student'\]"),
        ("tinny:base", "no 'tinny' in posttrain_jax/models/. Did you mean 'tiny'"),
    ],
)
def test_unknown_names_raise(spec, message):
    with pytest.raises(ValueError, match=message):
        find_config(spec)


def test_unknown_fields_raise():
    with pytest.raises(TypeError, match="depth"):
        find_config("tiny:base", depth=3)
