"""Metrics of a run: metrics.jsonl for what is deterministic, TensorBoard for timings too."""

import contextlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from lenext.buckets import AnyPath, in_bucket, is_of_bucket
from lenext.errors import MISREAD, TrainingError, UserError, reason_of
from lenext.files import write_atomically

EVERY = 30.0
"""Seconds between two writes to a bucket, whose objects are only ever written as a whole."""


def _without_torch(name: str) -> ModuleType:
    """The module, which would import PyTorch where it finds it: seconds of each start."""
    if "torch" in sys.modules:
        return importlib.import_module(name)
    sys.modules["torch"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["torch"]


tensorboardX = _without_torch("tensorboardX")


class MetricsWriter:
    """Appends to DIR/metrics.jsonl and to TensorBoard events in DIR/tensorboard.

    In a bucket both stand as they were some seconds ago, at each `flush`, and at the end.

    Args:
      workdir: DIR.
      resume_step: records of later steps, which an interrupted run wrote after its last
        checkpoint, are dropped: the steps are about to be taken again.

    Raises:
      UserError: a line of metrics.jsonl is none that a run wrote.
    """

    def __init__(self, workdir: AnyPath, resume_step: int):
        self.path = workdir / "metrics.jsonl"
        kept = [
            line
            for number, line in enumerate(_complete_lines(self.path))
            if self._step(number, line) <= resume_step
        ]
        self._text = "".join(line + "\n" for line in kept)
        write_atomically(self.path, self._text)
        self._last = resume_step
        self._in_bucket, self._written = in_bucket(workdir), time.monotonic()
        self._board = workdir / "tensorboard"
        if self._in_bucket:
            self._local = tempfile.TemporaryDirectory()
        self.board = tensorboardX.SummaryWriter(
            self._local.name if self._in_bucket else str(self._board),
            purge_step=resume_step + 1 if resume_step else None,
        )

    def _step(self, number: int, line: str) -> int:
        try:
            return int(json.loads(line)["step"])
        except MISREAD:
            raise UserError(
                f"{self.path}, line {number + 1}: should be a record of metrics; take the line out"
            ) from None

    def write(self, step: int, scalars: dict[str, float], timings: dict[str, float]) -> None:
        """One record; `timings` go to TensorBoard only.

        Raises:
          TrainingError: it cannot be written.
        """
        # Shortest digits that give the float32 back, so that equal metrics are equal text.
        record = {name: float(str(np.float32(value))) for name, value in scalars.items()}
        self._last = step
        line = json.dumps({"step": step, **record}) + "\n"
        for name, value in (scalars | timings).items():
            self.board.add_scalar(name, value, step)
        if not self._in_bucket:
            with self._writing(), Path(self.path).open("a") as file:
                file.write(line)
            return
        self._text += line
        if time.monotonic() - self._written > EVERY:
            self.flush()

    def flush(self) -> None:
        """Returns when all that was written is there.

        Raises:
          TrainingError: it cannot be written.
        """
        if self._in_bucket:
            self.board.flush()
            with self._writing():
                write_atomically(self.path, self._text)
                for file in Path(self._local.name).iterdir():
                    write_atomically(self._board / file.name, file.read_bytes())
            self._written = time.monotonic()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not isinstance(error, OSError) and not is_of_bucket(error):
                raise
            raise TrainingError(
                f"{self.path}: cannot be written ({reason_of(error)}), at step {self._last}"
            ) from None

    def close(self) -> None:
        """Flushes what has not been written."""
        try:
            self.flush()
        finally:
            self.board.close()
            if self._in_bucket:
                self._local.cleanup()


def _complete_lines(path: AnyPath) -> list[str]:
    """Lines of a file, without a last one that a killed process left unfinished."""
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
