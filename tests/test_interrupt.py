"""The first signal is a request, the second one is not."""

import signal

import pytest

from janus_min.interrupt import Interruptible


@pytest.fixture(autouse=True)
def interruptible_at_all():
    """A shell starts what it puts into the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts(number, capsys):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with Interruptible() as interrupt:
        assert interrupt.received is None
        signal.raise_signal(number)
        assert interrupt.received == number
        assert "finishing this step to save it; once more ends" in capsys.readouterr().err
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Interruptible() as interrupt:
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before and interrupt.received is None
