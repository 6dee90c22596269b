"""Trains for some minutes under faults, and compares with a run that was left alone.

    python -m tests.soak [MINUTES] [gs|s3]     # or make soak; default: 10

Two processes train together. Again and again, at random moments, both or one of them are killed,
or told to stop, and the same command starts them again. At the end the metrics of every step must
be, to the bit, those of an undisturbed run of as many steps, and no start may have lost more than
what came after the last complete checkpoint. With gs or s3 the disturbed run is in a bucket, of a
server on this machine that goes away for ten seconds, or does what it is asked and does not answer;
that which is left alone is on a disk.
"""

import contextlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from lenext.config import Config
from lenext.workdirs.checkpoints import newest_step
from tests.training.common import tiny_config
from tests.training.processes import Processes

FAULTS = ("kill both", "kill process 0", "kill process 1", "SIGTERM")
AWAY, SILENT = "bucket away", "answers lost"  # which by themselves end nothing
SECONDS_AWAY, SECONDS_SILENT = 10, 3
EARLY = 0.2  # share of faults that come before the first step, at any moment of the start
CHECKPOINT_EVERY = 20


class Soaked(NamedTuple):
    """What happened.

    Attributes:
      faults: how many of each kind.
      steps: that were compared.
      trouble: what was wrong; empty where nothing was lost.
    """

    faults: dict[str, int]
    steps: int
    trouble: list[str]


def soak(folder: Path, minutes: float, seed: int, server: Any = None) -> Soaked:
    """Trains in folder/disturbed for so long, and in folder/whole as far as that came.

    There is trouble where that is nowhere. With a server of tests/workdirs/servers.py the former
    is in its bucket.
    """
    config = _config(folder)
    disturbed, whole = folder / "disturbed", folder / "whole"
    kinds = FAULTS
    if server is not None:
        disturbed, kinds = server.path("disturbed"), (*FAULTS, AWAY, SILENT)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    rng, faults, trouble = random.Random(seed), dict.fromkeys(kinds, 0), []
    start, allowed = time.monotonic(), 60 * minutes
    while not trouble:
        passed = time.monotonic() - start
        # A slow machine gets more time for its first checkpoint, without which nothing is tested.
        if passed > allowed and (newest_step(disturbed) or passed > 10 * allowed):
            break
        before = newest_step(disturbed) or 0
        processes = Processes(config, disturbed, **cache)
        if rng.random() < EARLY:
            time.sleep(rng.uniform(0.0, 10.0))
        else:
            processes.wait_for(processes.lines() + rng.randrange(2, 8 * CHECKPOINT_EVERY))
            time.sleep(rng.uniform(0.0, 0.1))
        fault = rng.choice(kinds)
        faults[fault] += 1
        if fault in (AWAY, SILENT):
            with server.gate.shut() if fault == AWAY else server.gate.losing_answers():
                time.sleep(SECONDS_AWAY if fault == AWAY else SECONDS_SILENT)
            print(f"{fault}, at {processes.lines()} steps", flush=True)
            fault = "SIGTERM"
        if fault == "SIGTERM":
            processes.signal(signal.SIGTERM)
        else:
            processes.kill(*{"kill both": (0, 1)}.get(fault, (int(fault[-1:] == "1"),)))
        print(f"{fault}, at {processes.lines()} steps", flush=True)
        trouble += _ending(fault, before, processes)

    # What was on its way when the last fault came may be there in part.
    steps = newest_step(disturbed) or 0
    if not steps:
        return Soaked(faults, steps, [*trouble, "no checkpoint was written"])
    left_alone = Processes(config, whole, **cache)
    left_alone.wait_for(steps)
    left_alone.signal(signal.SIGTERM)
    trouble += _ending("SIGTERM", 0, left_alone)
    ours, theirs = (
        (run / "metrics.jsonl").read_bytes().splitlines()[:steps] for run in (disturbed, whole)
    )
    different = [i for i, pair in enumerate(zip(ours, theirs, strict=True), 1) if len({*pair}) > 1]
    if different:
        trouble.append(f"{len(different)} of {steps} steps differ, the first is {different[0]}")
    return Soaked(faults, steps, trouble)


def _config(folder: Path) -> Config:
    """A run without end."""
    config = tiny_config(folder / "data")
    config.training.update(
        steps=1_000_000, log_every=1, eval_every=200, checkpoint_every=CHECKPOINT_EVERY
    )
    return config


def _ending(fault: str, before: int, processes: Processes) -> list[str]:
    """What is wrong with how processes ended, and where they had started."""
    trouble = []
    try:
        code, out, err = processes.end()
    except subprocess.TimeoutExpired:
        return [f"{fault}: went on, to {processes.lines()} steps"]
    if "Traceback" in err:
        trouble.append(f"{fault}: a traceback\n{err}")
    # Told to stop before it listens, a process dies of the signal, as any does.
    good = (75, 143, -signal.SIGTERM) if fault == "SIGTERM" else (137, 75)
    if code not in good:
        trouble.append(f"{fault}: ended with code {code}\n{err}")
    began = re.search(r"resuming from step (\d+)", out)
    if began and int(began[1]) < before:
        trouble.append(f"{fault}: began at step {began[1]}, though {before} was written")
    return trouble


def main() -> None:
    """Soaks, and exits with 1 where something was lost."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    seed = random.SystemRandom().randrange(10**6)
    print(f"{minutes:g} minutes, seed {seed}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = None
        if sys.argv[2:]:
            from tests.workdirs.servers import serving

            server = serving(sys.argv[2])
        faults, steps, trouble = soak(folder, minutes, seed, server)
    for line in trouble:
        print(f"error: {line}", file=sys.stderr)
    kinds = ", ".join(f"{count} x {fault}" for fault, count in faults.items())
    print(f"{sum(faults.values())} faults ({kinds}): {steps} steps compared")
    sys.exit(bool(trouble))


if __name__ == "__main__":
    main()
