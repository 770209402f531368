"""Ctrl-C that is held back until work can be left."""

import signal
import threading

import pytest

from spikebrain.interrupt import held_interrupt


@pytest.fixture(autouse=True)
def interrupts(listens_to_interrupts):
    """The shell may have started the tests with Ctrl-C ignored."""


def test_the_first_one_waits_and_the_second_does_not():
    before, reached = signal.getsignal(signal.SIGINT), []

    def work(times):
        with held_interrupt() as came:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
                reached.append(came())

    with pytest.raises(KeyboardInterrupt):
        work(2)
    assert reached == [True]
    with pytest.raises(KeyboardInterrupt):
        work(1)
    assert reached == [True, True]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_one_nothing_changes():
    before = signal.getsignal(signal.SIGINT)
    with held_interrupt() as came:
        assert signal.getsignal(signal.SIGINT) is not before
    assert not came()
    assert signal.getsignal(signal.SIGINT) is before


def test_in_other_threads_and_where_signals_are_ignored_nothing_is_held():
    found = []

    def work():
        with held_interrupt() as came:
            found.append((signal.getsignal(signal.SIGINT), came()))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_interrupt() as came:
            signal.raise_signal(signal.SIGINT)
            assert not came()
    finally:
        signal.signal(signal.SIGINT, before)
