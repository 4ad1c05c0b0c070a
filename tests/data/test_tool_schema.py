"""Functions as tool schemas: as transformers wrote them (tests/oracle/make_chat_golden.py)."""

import json
import typing
from pathlib import Path

import pytest

from posttrain_jax.data.tool_schema import tool_schema

GOLDEN = Path(__file__).parents[1] / "golden" / "chat_templates.json"
FUNCTIONS = json.loads(GOLDEN.read_text())["functions"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_schema_is_transformers(name):
    scope = dict(vars(typing))
    exec(FUNCTIONS[name]["source"], scope)  # a stored function of our own
    assert tool_schema(scope[name]) == FUNCTIONS[name]["schema"]


def test_functions_that_cannot_be_described():
    def bare(x: int):
        pass

    def unnamed(x):
        """Do.

        Args:
            x: a thing
        """

    def undescribed(x: int):
        """Do."""

    def strange(x: object):
        """Do.

        Args:
            x: a thing
        """

    cases = {"no docstring": bare, "x has no annotation": unnamed}
    cases |= {"does not describe the argument x": undescribed, "JSON has no type": strange}
    for message, function in cases.items():
        with pytest.raises(ValueError, match=f"tool {function.__name__}.*{message}"):
            tool_schema(function)
