"""What a guest's client is told where nobody reads its requests any more."""

import time

import pytest

from posttrain_jax.verifiers.jail import Limits, Outcome
from posttrain_jax.verifiers.jail.connection import Connection
from posttrain_jax.verifiers.jail.dialogue import Dialogue
from posttrain_jax.verifiers.jail.values import encode

LIMITS = Limits(cpu_s=1.0, wall_s=5.0)


@pytest.fixture(scope="module")
def connection(tier):
    made = Connection((), False, tier.level)
    yield made
    made.close()


@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_a_guest_that_could_not_start_is_our_fault(connection, pause):
    dialogue = Dialogue(connection, "function", LIMITS, target="no.such")
    time.sleep(pause)  # its end lies there already, or comes while the request is written
    for _ in range(2):
        outcome = dialogue.ask(["no.such:f", encode([])], LIMITS)
        assert isinstance(outcome, Outcome) and outcome.status == "infra_error"
        assert "No module named 'no'" in outcome.detail
    dialogue.close()


def test_a_guest_that_has_ended_tells_how_each_time_it_is_asked(connection):
    dialogue = Dialogue(connection, "function", LIMITS, target="os")
    request = ["os:_exit", encode([3])]
    for _ in range(2):
        outcome = dialogue.ask(request, LIMITS)
        assert isinstance(outcome, Outcome)
        assert (outcome.status, outcome.detail) == ("died", "exit code 3")
    dialogue.tell(request)
    dialogue.close()
