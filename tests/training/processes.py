"""Processes that train together, and what can happen to them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lenext.buckets import AnyPath, filesystem, in_bucket
from lenext.config import Config
from tests.training.common import REPOSITORY, arguments

ENVIRONMENT = {"PYTHON": sys.executable, "LENEXT_HEARTBEAT_SECONDS": "10"}


class Processes:
    """launch/local.sh COUNT, training `config` in `workdir`."""

    def __init__(self, config: Config, workdir: AnyPath, count: int = 2, **environment: str):
        self.metrics = workdir / "metrics.jsonl"
        self.process = subprocess.Popen(
            ["launch/local.sh", str(count), "--", *arguments(config), f"--workdir={workdir}"],
            cwd=REPOSITORY,
            env=os.environ | ENVIRONMENT | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def lines(self) -> int:
        """Of metrics that are written."""
        if in_bucket(self.metrics):  # by one request, for it is written all the time
            try:
                return filesystem(self.metrics).cat_file(str(self.metrics)).count(b"\n")
            except FileNotFoundError:
                return 0
        return self.metrics.read_bytes().count(b"\n") if self.metrics.exists() else 0

    def wait_for(self, lines: int) -> bool:
        """Until there are so many, or the processes have ended; whether they go on."""
        while self.process.poll() is None and self.lines() < lines:
            time.sleep(0.2 if in_bucket(self.metrics) else 0.01)
        return self.process.poll() is None

    def wait_to_say(self, words: str) -> None:
        """Until process 0 has said these on stdout."""
        assert self.process.stdout is not None
        while words not in self.process.stdout.readline():
            assert self.process.poll() is None, words

    def signal(self, number: signal.Signals) -> None:
        """To the launcher, which hands it on."""
        self.process.send_signal(number)

    def kill(self, *numbers: int) -> None:
        """Kills some of the processes, without warning, as soon as they are there."""
        found: dict[int, int] = {}
        while len(found) < len(numbers) and self.process.poll() is None:
            for child in self._children():
                try:
                    environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError):  # it has ended
                    continue
                for number in numbers:
                    if f"JAX_PROCESS_ID={number}".encode() in environment:
                        found[number] = child
        for child in found.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def _children(self) -> list[int]:
        place = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            return [int(number) for number in place.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def end(self, timeout: float = 120) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # and what it has left alone
            raise
        return self.process.returncode, out, err
