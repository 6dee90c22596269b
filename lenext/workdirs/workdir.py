"""A workdir: whose run it holds."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from lenext.buckets import AnyPath, in_bucket
from lenext.config import Config, base_config, differences, plain
from lenext.config.imports import join_imports
from lenext.errors import UserError, reason_of
from lenext.files import make_folder, read_json, write_atomically
from lenext.workdirs.lease import lease

SOURCE = "source"
"""Folder in the workdir of an imported run: what it came from, but for the parameters."""
CHANGEABLE = ("log_every", "eval_every", "checkpoint_every", "keep_latest")
"""Keys of the section `training` that a run may go on with another way."""
EARLIER = {"bos": "none", "eos": "customary"}
"""Of the section `data`, how it was with a tokeniser's file before these keys came."""
TOKENIZERS = ("tokenizer.json", "vocab.txt")
"""What the tokeniser of an imported run is called, in its workdir."""


def read_run_config(workdir: AnyPath) -> dict[str, Any] | None:
    """The config of the run that DIR holds; None where it holds none.

    Keys that are newer than the run are taken to have been at their defaults, which stand for how
    things were before, or at `EARLIER`, where they do not. A tokeniser that came along with an
    imported model is found in DIR, wherever that was moved.

    Raises:
      UserError: for a config.json that cannot be read, or is no JSON object.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: should be a JSON object")
    data = config.get("data")
    if isinstance(data, dict) and str(data.get("tokenizer")).endswith(".json"):
        config["data"] = EARLIER | data
    config = _with_defaults(config, plain(base_config()))
    data = config["data"]
    tokenizer = PurePath(str(data.get("tokenizer"))) if isinstance(data, dict) else PurePath()
    beside = workdir / tokenizer.name
    if tokenizer.name in TOKENIZERS and not os.path.exists(tokenizer) and beside.exists():
        data["tokenizer"] = str(beside)
    return config


def check_run(workdir: AnyPath, config: Config) -> None:
    """Checks that DIR is free for this run, or holds this very run.

    The sections `eval` and `mesh` may differ, and how often a run logs, evaluates and keeps
    checkpoints: what is trained does not follow from them. Nor does it from where code is that
    `imports` names; what it registers is held against its source.

    Raises:
      UserError: naming the keys that differ, or what stands where DIR should be.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir}: should be a folder")
    if (workdir / "checkpoints" / "0").is_dir():  # which no training writes
        raise UserError(
            f"workdir {workdir}: holds imported weights; go on from them in another workdir, by "
            f"--config=configs/finetune.py:{workdir}"
        )
    stored = read_run_config(workdir)
    if stored is None:
        return
    ours = plain(config)
    found = differences(_training_part(ours), _training_part(stored))
    if found:
        advice = "take another workdir or the same config"
        if len(found) == 1 and found[0].startswith("training.steps "):
            advice = (
                "for more steps take another workdir, and --config.training.branch_from="
                f"{workdir}, which goes on from its last checkpoint"
            )
        raise UserError(
            f"workdir {workdir} holds a run of another config: {', '.join(found)}; {advice}"
        )


def write_run_config(workdir: AnyPath, config: Config) -> None:
    """Writes DIR/config.json, unless it is there; imports by absolute paths."""
    path = workdir / "config.json"
    if not path.exists():
        try:
            make_folder(workdir)
            content = plain(config) | {"imports": join_imports(config.imports)}
            write_atomically(path, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"workdir {workdir}: cannot be written ({reason_of(error)})") from None


@contextlib.contextmanager
def sole_writer(workdir: AnyPath) -> Iterator[None]:
    """Keeps other runs out of DIR for as long as this one writes there, or lives.

    Raises:
      UserError: another process is training there, or DIR cannot be written.
    """
    if in_bucket(workdir):
        with lease(workdir):
            yield
        return
    try:
        lock = Path(workdir / ".lock").open("a")  # noqa: SIM115 # as long as the lock
    except OSError as error:
        raise UserError(f"workdir {workdir}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"workdir {workdir}: another process is training there; wait for it, or take "
                "another workdir"
            ) from None
        except OSError:  # a file system without locks, such as some networks'
            pass
        yield


def _training_part(config: dict[str, Any]) -> dict[str, Any]:
    part = {key: value for key, value in config.items() if key not in ("eval", "imports", "mesh")}
    if isinstance(part.get("training"), dict):
        part["training"] = {k: x for k, x in part["training"].items() if k not in CHANGEABLE}
    return part


def _with_defaults(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`stored` with the keys that it lacks, at their defaults."""
    filled = defaults | stored
    for key, default in defaults.items():
        # Evaluators are the config's own: one of the defaults' need never have been there.
        if isinstance(default, dict) and isinstance(filled[key], dict) and key != "evaluators":
            filled[key] = _with_defaults(filled[key], default)
    return filled
