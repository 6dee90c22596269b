"""SIGTERM: the notice that this machine is about to be taken away."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Notes SIGTERM, between `__enter__` and `__exit__`, instead of dying of it.

    Several processes agree on one step at which all of them stop, whichever got the signal (by
    JAX's preemption service, which then is the one that listens).
    """

    def __init__(self):
        self._noticed = False
        self._before = None

    def __enter__(self) -> "Preemption":
        # Only a main thread may listen to signals.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every step, by all processes."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed
