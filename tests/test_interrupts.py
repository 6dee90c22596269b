"""Ctrl-C at a command. What it does to a training: tests/training/test_preemption.py."""

import signal
import subprocess
import sys
import time

import pytest

from lenext.interrupts import EXIT, Interrupts
from tests.training.common import REPOSITORY


def test_the_first_is_an_interruption_and_what_was_before_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


class Callback:
    """What is called where nothing can be raised, as of JAX in the garbage collector."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_one_that_python_would_drop_comes_again(monkeypatch):
    def drop():
        with Interrupts() as listening:
            hook = lambda found: listening.raise_again(found.exc_type)  # noqa: E731
            monkeypatch.setattr(sys, "unraisablehook", hook)
            Callback()  # which is gone at once
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        drop()


AT_WORK = """
import hashlib, signal, threading, time
from lenext.interrupts import Interrupts

def press():
    for _ in range(2):
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

with Interrupts():
    threading.Thread(target=press).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, as a compilation
"""


def test_the_second_ends_what_python_cannot_interrupt():
    done = subprocess.run(
        [sys.executable, "-c", AT_WORK],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT
    assert done.stderr.split() == ["error:", "interrupted", "twice,", "and", "ended", "at", "once"]
