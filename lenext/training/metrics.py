"""Metrics of a run: metrics.jsonl for what is deterministic, TensorBoard for timings too."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from lenext.errors import MISREAD, TrainingError, UserError
from lenext.files import write_atomically


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

    Args:
      workdir: DIR.
      resume_step: records of later steps, which an interrupted run wrote after its last
        checkpoint, are dropped: the steps are about to be taken again.

    Raises:
      UserError: a line of metrics.jsonl is none that a run wrote.
    """

    def __init__(self, workdir: Path, resume_step: int):
        self.path = workdir / "metrics.jsonl"
        kept = [
            line
            for number, line in enumerate(_complete_lines(self.path))
            if self._step(number, line) <= resume_step
        ]
        write_atomically(self.path, "".join(line + "\n" for line in kept))
        self.board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None
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
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **record}) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{self.path}: cannot be written ({error.strerror}), at step {step}"
            ) from None
        for name, value in (scalars | timings).items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes what TensorBoard has not written."""
        self.board.close()


def _complete_lines(path: Path) -> list[str]:
    """Lines of a file, without a last one that a killed process left unfinished."""
    text = path.read_text(errors="replace") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
