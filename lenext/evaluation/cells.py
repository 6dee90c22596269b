"""What a sweep has measured, kept cell by cell, so that nothing is measured twice.

A cell is DIR/eval/cells/LENGTH-KEY.json: what was measured of a method at a length, under a key of
all that its figures follow from. How a pass is cut into batches, and over which devices it is
split, is no part of it: figures are the same but for rounding.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lenext.buckets import AnyPath
from lenext.config import base_config, plain
from lenext.errors import MISREAD, UserError, reason_of
from lenext.evaluation.protocols import Prompts, Sequences
from lenext.evaluation.sweep import Settings
from lenext.files import make_folder, write_atomically
from lenext.models import Model, model_methods
from lenext.reporting.records import Cell, read_cell
from lenext.workdirs.calibration import is_calibrated
from lenext.workdirs.pretrained import Pretrained
from lenext.workdirs.versions import FIGURES_VERSION, changes

DIGITS = 16
CELLS = "cells"
"""Folder of the cells in DIR/eval, shared by all of its tables."""


def digest(value: Any) -> str:
    """Of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def digest_of(sequences: Sequences | Prompts) -> str:
    """Of sequences: all that is asked, and of which documents."""
    arrays = sequences.batch | {"document": sequences.document}
    if isinstance(sequences, Prompts):
        arrays["place"] = sequences.place
        said: Any = sequences.task, sequences.expected, sequences.draw, sequences.length
    else:
        arrays |= sequences.answers._asdict() if sequences.answers else {}
        arrays |= {} if sequences.far is None else {"far": sequences.far}
        said = sequences.ordered
    found = hashlib.sha256(str(said).encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:DIGITS]


class Cells:
    """Cells of a folder, by their keys.

    Args:
      folder: made when the first cell is kept.
    """

    def __init__(self, folder: AnyPath):
        self.folder = folder

    @staticmethod
    def name(length: int, key: Mapping[str, Any]) -> str:
        """Of the file that the cell of a key is kept in."""
        return f"{length}-{digest(key)}.json"

    def find(self, length: int, key: Mapping[str, Any]) -> Cell | None:
        """The cell of a key; None where there is none that can be read."""
        path = self.folder / self.name(length, key)
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            return read_cell(found["cell"]) if found["key"] == key else None
        except (OSError, *MISREAD):
            print(f"{path}: is damaged; measured anew")
            return None

    def keep(self, key: Mapping[str, Any], cell: Cell) -> None:
        """Writes a cell that is done.

        Raises:
          UserError: it cannot be written.
        """
        content = {"key": key, "cell": dataclasses.asdict(cell)}
        path = self.folder / self.name(cell.length, key)
        try:
            make_folder(self.folder)
            write_atomically(path, json.dumps(content) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({reason_of(error)})") from None


def cell_keys(
    run: Pretrained,
    models: dict[str, Model],
    sequences: Mapping[int, Sequences | Prompts],
    how: Settings,
) -> dict[tuple[str, int], dict[str, Any]]:
    """By method as typed and length, all that a cell's figures follow from, as JSON values.

    Args:
      run: whose weights these are.
      models: its weights under each method.
      sequences: what is asked, by length.
      how: settings of the sweep.
    """
    sizes = run.model.config
    shared = {
        "figures_version": FIGURES_VERSION,
        "weights": [run.step, run.weights, run.identity],
        "model": changes(plain(run.config.model), plain(base_config().model)),
        "types": [str(sizes.dtype), sizes.param_dtype, jax.default_backend()],
        "protocol": how.protocol,
        "byte_level": how.byte_level,
        "probe_rows": how.probe_rows,
    }
    asked = {length: digest_of(own) for length, own in sequences.items()}
    keys = {}
    for name, model in models.items():
        methods = model_methods(model)
        from_outside = run.sources_of(name)
        own = {
            # Without their names: rerope+infoscale is infoscale+rerope.
            "method": [repr(dataclasses.replace(method, name="")) for method in methods],
            "sources": from_outside,
            "calibration": _parts(model) if is_calibrated(methods) else None,
        }
        for length, sequence in asked.items():
            keys[name, length] = shared | own | {"length": length, "sequences": sequence}
    return keys


def _parts(model: Model) -> str:
    """A digest of what the layers' methods have learned, or was measured for them."""
    layers = range(model.config.num_layers)
    learned = [model.layers.attention.learned_by(layer) for layer in layers]
    return digest(jax.tree.map(lambda x: jax.device_get(x).tolist(), learned))
