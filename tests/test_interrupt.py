"""A signal becomes a request; a second one has the default effect; handlers are put back."""

import os
import signal

import pytest

from posttrain_jax import interrupt


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_becomes_a_request_and_the_next_one_is_deadly(number, capfd):
    before = [signal.getsignal(each) for each in interrupt.SIGNALS]
    with interrupt.watching():
        assert not interrupt.requested()
        os.kill(os.getpid(), number)
        assert interrupt.requested()
        assert all(signal.getsignal(each) is signal.SIG_DFL for each in interrupt.SIGNALS)
    assert not interrupt.requested()
    assert [signal.getsignal(each) for each in interrupt.SIGNALS] == before
    assert "Ctrl-C again" in capfd.readouterr().err


def test_interrupted_says_which_step_is_saved():
    assert str(interrupt.Interrupted(12)) == "stopped and saved at step 12"
    assert interrupt.Interrupted(12).step == 12
