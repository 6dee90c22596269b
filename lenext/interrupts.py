"""Ctrl-C at a command: the first asks it to end, a second ends it at once."""

import _thread
import contextlib
import os
import signal
import sys
import threading
from types import FrameType

EXIT = 130
"""What shells say of a program that SIGINT has ended."""

FIRST = b"\ninterrupted: ends with what is at hand; Ctrl-C again ends at once\n"
SECOND = b"\nerror: interrupted twice, and ended at once\n"

RAISED_AGAIN = 0.05
"""Seconds until an end that went by comes again."""


class Interrupts:
    """SIGINT between `__enter__` and `__exit__`: KeyboardInterrupt, and the second time the end.

    Python hears of a signal between two of its own steps, and a compilation may take minutes: that
    the second ends it, a thread listens too.
    """

    def __init__(self):
        self._count = 0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "Interrupts":
        before = signal.getsignal(signal.SIGINT)
        # Only a main thread may listen; and what is ignored, as by a shell's &, stays so.
        main = threading.current_thread() is threading.main_thread()
        if not main or before in (signal.SIG_IGN, None):
            return self
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._undo.callback(os.close, writer)  # at which the thread ends
        threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
        awake = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, awake)
        signal.signal(signal.SIGINT, _interrupt)
        self._undo.callback(signal.signal, signal.SIGINT, before)
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def raise_again(self, kind: type[BaseException] | None) -> bool:
        """Whether that is an end by a signal; for one that came where nothing can be raised.

        In a finaliser or a callback of the garbage collector, Python drops what is raised.
        """
        numbers = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
        number = numbers.get(kind)  # pyright: ignore[reportArgumentType]
        if number is None:
            return False
        self._count -= number == signal.SIGINT  # it counts, or will, and comes once more
        threading.Timer(RAISED_AGAIN, _thread.interrupt_main, (number,)).start()
        return True

    def _listen(self, reader: int) -> None:
        """Reads the numbers of signals, whatever the main thread is at."""
        with open(reader, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                self._count += number[0] == signal.SIGINT
                if number[0] == signal.SIGINT and self._count == 1 and sys.stderr.isatty():
                    os.write(2, FIRST)
                elif self._count > 1:
                    os.write(2, SECOND)
                    os._exit(EXIT)


def end(code: int) -> None:
    """Ends the process, with no more than its output brought out.

    Python's own end takes down what threads of XLA's are using where a compilation was interrupted,
    which was a segmentation fault.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
