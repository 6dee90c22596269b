"""Runs of a few seconds, shared by the tests of training, evaluation and the command line."""

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

from configs import decoder, quickstart

REPOSITORY = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """How an entry point ended, and what it said."""

    code: int
    out: str
    err: str


def tiny_config(data_dir):
    """The quickstart's smoke config, shrunk further: compilation is all that takes time."""
    return _shrink(quickstart.get_config("smoke"), data_dir)


def tiny_decoder_config(data_dir, method="softmax"):
    """The same of the decoder's."""
    config = _shrink(decoder.get_config(f"tiny,{method},smoke"), data_dir)
    config.model.update(num_heads=2, num_kv_heads=1)
    return config


def _shrink(config, data_dir):
    config.model.update(hidden_size=16, intermediate_size=32, key_size=8, num_layers=2)
    config.data.update(train_length=16, batch_size=4, data_dir=str(data_dir))
    config.optimizer.warmup_steps = 3
    config.training.update(steps=12, log_every=1, eval_every=6, checkpoint_every=3)
    config.evaluators.validation.update(length=16, documents=4, tokens=128)
    config.eval.update(
        methods="softmax,infoscale", lengths="16,48", documents=6, tokens=512, batch_tokens=256,
        probe_rows=4, bootstrap=100,
    )  # fmt: skip
    return config


def command(program, config, workdir):
    """What `subprocess` needs for `python -m lenext.PROGRAM`."""
    return {
        "args": [
            sys.executable,
            "-m",
            f"lenext.{program}",
            *arguments(config),
            f"--workdir={workdir}",
        ],
        "cwd": REPOSITORY,
        "env": dict(os.environ),
    }


def arguments(config, file="quickstart"):
    """The command line's words for a config."""
    return [f"--config=configs/{file}.py:smoke", *_flags(config)]


def _flags(config, prefix="config"):
    flags = []
    for key, value in config.items():
        name = f"{prefix}.{key}"
        flags += _flags(value, name) if hasattr(value, "items") else [f"--{name}={value}"]
    return flags


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def snapshot(folder):
    """Every file's content and every folder, to see whether anything was touched."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
