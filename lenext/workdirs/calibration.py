"""Parts of methods that were measured on trained weights, stored beside the checkpoints.

DIR/calibration.json holds, for each pattern of methods that was calibrated, its parts by layer, and
of which checkpoint's weights they were measured.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lenext.attention import AnyMethod, methods_of, overruled_parts
from lenext.buckets import AnyPath
from lenext.errors import MISREAD, UserError
from lenext.files import write_atomically
from lenext.models.build import Model
from lenext.models.swap import model_methods, unsuited, with_method
from lenext.workdirs.pretrained import Pretrained

FILE = "calibration.json"


def is_calibrated(methods: Sequence[AnyMethod]) -> bool:
    """Whether any of the methods has parts to be measured."""
    return any(
        axis.calibrated
        for of_layer in methods
        for method in methods_of(of_layer)
        for axis in method.axes().values()
    )


def under_method(
    run: Pretrained, workdir: AnyPath, pattern: Sequence[AnyMethod]
) -> tuple[Model, bool]:
    """The run's weights under another pattern of methods, with calibrated parts if there are any.

    Returns:
      The model; and whether parts that should be measured stand at their initial values.

    Raises:
      UserError: the calibration is of another checkpoint, or of what a method was before.
    """
    model = with_method(run.model, pattern)
    if not is_calibrated(pattern) or model_methods(model) == model_methods(run.model):
        return model, False
    for entry in read_calibration(workdir):
        if run.read_methods(entry["method"]) == model_methods(model):
            measured = {"step": run.step, "weights": run.weights}
            found = {key: entry[key] for key in measured}
            again = "calibrate again (lenext.evaluate --calibrate)"
            if found != measured:
                raise UserError(
                    f"{workdir / FILE}: {entry['method']} was calibrated on {_words(found)}, and "
                    f"these are {_words(measured)}; {again}"
                )
            # Up to version 0.2 they were not kept.
            if entry.get("identity", run.identity) != run.identity:
                raise UserError(
                    f"{workdir / FILE}: {entry['method']} was calibrated on other weights of step "
                    f"{run.step}, which was trained anew since; {again}"
                )
            sources = run.sources_of(entry["method"])
            if entry.get("sources", sources) != sources:
                raise UserError(
                    f"{workdir / FILE}: the source of {entry['method']} has changed since it was "
                    f"calibrated; {again}"
                )
            try:
                set_parts(model, entry["parts"])
            except MISREAD:
                raise UserError(
                    f"{workdir / FILE}: has other parts than {entry['method']} takes; {again}"
                ) from None
            return model, False
    return model, True


def under_name(run: Pretrained, workdir: AnyPath, name: str) -> tuple[Model, list[str]]:
    """The run's weights under methods by name, as `under_method`, and what is to be told of them.

    Returns:
      The model; and a line for each part that changes nothing, for parts that should be measured
      and are not, and for axes that want weights trained for them.

    Raises:
      UserError: for an unknown method or option, and as `under_method`.
    """
    model, uncalibrated = under_method(run, workdir, run.read_methods(name))
    told = [*dict.fromkeys(overruled_parts(name))]
    if uncalibrated:
        told.append(f"{name} is not calibrated (lenext.evaluate --calibrate)")
    axes = ", ".join(unsuited(model, model_methods(run.model)))
    if axes:
        told.append(f"{name} wants weights trained for it, which these were not ({axes})")
    return model, told


def _words(of: dict[str, Any]) -> str:
    return f"{of['weights']} of step {of['step']}"


def set_parts(model: Model, parts: Sequence[dict[str, Any]]) -> None:
    """Sets parts of the layers' methods, in place: a dict a layer of axis to names to values.

    What the dicts do not name stays as it is.

    Raises:
      ValueError: a value is not finite as float32, or not of the part's size.
    """
    for layer, (_, values) in enumerate(zip(model.methods, parts, strict=True)):
        for axis, named in values.items():
            for name, value in named.items():
                if not np.all(np.abs(np.asarray(value, np.float64)) <= np.finfo(np.float32).max):
                    raise ValueError(f"{axis}.{name}: should be finite numbers")
                model.layers.attention.set_learned(layer, axis, name, value)


def read_calibration(workdir: AnyPath) -> list[dict[str, Any]]:
    """The entries of DIR/calibration.json, none where there is no such file.

    Raises:
      UserError: for a file that is not what `write_calibration` wrote.
    """
    path = workdir / FILE
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text())["calibrations"]
        whole = all(
            isinstance(e["method"], str) and {"step", "weights", "parts"} <= e.keys()
            for e in entries
        )
    except (OSError, *MISREAD):
        whole = False
    if not whole:
        raise UserError(f"{path}: should be as lenext.evaluate --calibrate writes it")
    return entries


def write_calibration(run: Pretrained, workdir: AnyPath, entries: Sequence[dict[str, Any]]) -> None:
    """Adds entries to DIR/calibration.json, in place of those of the same methods."""
    new = {run.read_methods(entry["method"]): entry for entry in entries}
    old = {run.read_methods(entry["method"]): entry for entry in read_calibration(workdir)}
    content = {"calibrations": [*(old | new).values()]}
    write_atomically(workdir / FILE, json.dumps(content, indent=1) + "\n")
