"""A run that is killed, with a warning or without, as a machine does it."""

import random
import signal
import subprocess
import time

import pytest

from lenext.training import train
from tests.training.common import command, read_metrics

STEPS = 140
EVERY = 20
"""Steps between checkpoints. Each waits for the one before, which so is whole once two are due."""


@pytest.fixture
def long_config(config):
    """A second or two of steps, with a checkpoint every few hundredths of one."""
    config.training.update(steps=STEPS, log_every=1, eval_every=50, checkpoint_every=EVERY)
    return config


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start_and_kill(config, workdir, after_line, number):
    """Starts the command and signals it once it has written so many lines, at no certain moment."""
    with (workdir.parent / "log").open("w") as log:
        process = subprocess.Popen(**command("train", config, workdir), stdout=log, stderr=log)
        try:
            while lines(workdir) < after_line and process.poll() is None:
                time.sleep(0.001)
            time.sleep(random.SystemRandom().uniform(0.0, 0.1))
        finally:
            process.send_signal(number)
            process.wait()
    return process.returncode


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_a_killed_run_ends_as_one_that_was_left_alone(long_config, tmp_path, number, code):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(long_config, whole)
    after_line = random.SystemRandom().randrange(25, STEPS - 80)
    assert start_and_kill(long_config, killed, after_line, number) == code
    written = lines(killed)
    assert after_line <= written < STEPS

    done = subprocess.run(
        **command("train", long_config, killed), capture_output=True, text=True, check=False
    )
    said = f"killed at {written} lines (asked for {after_line})\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, said
    # On a slow disk the first checkpoint may be unfinished, and the run starts anew.
    assert written <= 2 * EVERY or "resuming from step" in done.stdout, said
    # Also across processes: neither the types that tests check nor their settings enter.
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes(), said
    assert len(read_metrics(killed)) == STEPS
