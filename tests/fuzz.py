"""Reads mutated copies of what comes from strangers, for some minutes.

    python -m tests.fuzz [MINUTES] [--only=TARGET] [--seed=SEED]     # or make fuzz; default: 10

Each copy has to end in one line (a `UserError`) or be read, within a minute, without a gigabyte of
memory, and must leave nothing half-written. What goes wrong is printed with its target and seed:
the same two make the same copy again.
"""

import contextlib
import io
import math
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import absl.logging

import tests

tests.share_checks_of_inner_functions()  # as in conftest.py: it may be imported before that

from lenext.errors import UserError  # noqa: E402 # whose types are checked like the others'
from tests.fuzz_targets import TARGETS, Target  # noqa: E402
from tests.mutations import mutate  # noqa: E402

SECONDS = 60.0  # allowed for one copy
ROOM = 2**30  # bytes allowed beside what is there already
LINE = 2000  # characters allowed in a message


class Trouble(Exception):
    """What must not be."""


def attempt(target: Target, whole: Path, seed: int) -> str:
    """Reads one mutated copy.

    Args:
      target: what is read.
      whole: a folder that `target.make` has filled.
      seed: of the mutation.

    Returns:
      "read" or "refused".

    Raises:
      Trouble: anything else.
    """
    # What ends the process itself, as a library's abort does, leaves the folder, named by the seed.
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{seed}-") as name:
        folder = Path(name) / "in"
        shutil.copytree(whole, folder)
        path = next(folder.glob(target.file))
        path.write_bytes(mutate(target.file, path.read_bytes(), random.Random(seed)))
        before = _held(Path(name))
        start, out, err = time.monotonic(), io.StringIO(), io.StringIO()
        result, said = "read", ""
        try:
            with _bounded(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                target.read(folder)
        except UserError as error:
            result, said = "refused", str(error)
            if not said.strip() or not said.isprintable() or len(said) > LINE:
                raise Trouble(f"not one line: {said!r}") from None
            if any(isinstance(x, MemoryError) for x in _causes(error)):
                raise Trouble(f"took more than {ROOM:,} bytes ({said})") from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of Rust's is no Exception
            last = traceback.format_exc(limit=-4)
            raise Trouble(f"{type(error).__name__}: {error}\n{last}") from None
        if time.monotonic() - start > SECONDS:
            raise Trouble(f"took more than {SECONDS:.0f} s")
        for line in (out.getvalue() + err.getvalue()).split("\n"):
            if not line.isprintable() or len(line) > LINE:
                raise Trouble(f"not printable: {line!r}")
        after = _held(Path(name))
        changed = sorted(x for x in {*before, *after} if before.get(x) != after.get(x))
        if changed and (result == "refused" or any("/." in x for x in changed)):
            raise Trouble(f"left behind: {', '.join(changed)} ({said})")
        return result


def _held(folder: Path) -> dict[str, bytes | None]:
    """What lies in a folder, and beside it."""
    return {str(x): x.read_bytes() if x.is_file() else None for x in folder.rglob("*")}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Raises within what hangs or takes too much memory; a warning is an error, as in the tests."""

    def late(number: int, frame: object) -> None:
        raise Trouble(f"took more than {SECONDS:.0f} s")

    # Of data: address space alone a thread reserves by the 64 MB.
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + ROOM, limits[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prepare(names: Iterable[str], place: Path) -> dict[str, Path]:
    """Fills a folder a target with what it reads, which is checked to be read."""
    wholes: dict[Callable[[Path], None], Path] = {}
    for target in (TARGETS[name] for name in names):
        if target.make not in wholes:
            wholes[target.make] = place / str(len(wholes))
            wholes[target.make].mkdir()
            target.make(wholes[target.make])
        shutil.copytree(wholes[target.make], place / "copy")
        target.read(place / "copy")
        shutil.rmtree(place / "copy")
    return {name: wholes[TARGETS[name].make] for name in names}


def fuzz(
    seconds: float,
    seed: int,
    only: str = "",
    tell: Callable[[str], None] = lambda line: None,
    *,
    rounds: float = math.inf,
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Goes around the targets for so long or so often, and to the end of a round.

    Returns:
      By target, how many copies were "read", "refused" and "trouble"; and what that was.
    """
    names = [only] if only else [*TARGETS]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    trouble = []
    with tempfile.TemporaryDirectory(prefix="fuzz") as place:
        wholes = prepare(names, Path(place))
        first, end = seed, time.monotonic() + seconds
        while time.monotonic() < end and seed - first < rounds:
            for name in names:
                try:
                    result = attempt(TARGETS[name], wholes[name], seed)
                except Trouble as error:
                    result = "trouble"
                    trouble.append(f"{name}, seed {seed}: {error}")
                    tell(trouble[-1])
                counts[name][result] += 1
            seed += 1
    return counts, trouble


def main() -> None:
    """Parses the words and goes on until the time is over."""
    absl.logging.set_verbosity(absl.logging.FATAL)  # as the commands do
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
    counts, trouble = fuzz(
        60 * float(words[0] if words else 10),
        int(options.get("seed", 0)),
        options.get("only", ""),
        lambda line: print(line, flush=True),
    )
    for name, found in counts.items():
        print(f"{name}: {', '.join(f'{count} {how}' for how, count in found.items())}")
    sys.exit(bool(trouble))


if __name__ == "__main__":
    main()
