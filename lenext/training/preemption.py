"""Signals that ask a training to stop: SIGTERM, a machine's that is about to be taken away, and
SIGINT, Ctrl-C."""

import itertools
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

ASKED = itertools.count(1)
"""How often the service was asked. It has all stop when that is one more than it was in whoever was
asked most when the signal came: a step's number, in a run that goes on from step 200 and is told to
stop before step 201, would go past 1 for ever."""


class Preemption:
    """Notes SIGTERM and the first SIGINT, between `__enter__` and `__exit__`, raising nothing.

    Several processes agree on one step at which all of them stop, whichever got the signal (by
    JAX's preemption service, which then is the one that listens to SIGTERM).

    Attributes:
      interrupted: whether it was SIGINT.
    """

    def __init__(self):
        self.interrupted = False
        self._noticed = False
        self._before = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            return self  # only a main thread may listen to signals
        if jax.process_count() == 1:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._notice)
        # What is ignored, as by a shell's &, stays so.
        if callable(signal.getsignal(signal.SIGINT)):
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(number, self._before[number])  # a second one is not noted
        if jax.process_count() == 1:
            self._notice(number, frame)
        else:
            signal.raise_signal(signal.SIGTERM)  # which the service hands on to all

    def reached(self) -> bool:
        """Whether to stop here; to be asked after every step, by all processes."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(ASKED))
        return self._noticed
