"""Runs of a few seconds, shared by the tests of training, evaluation and the command line."""

import importlib.util
import json
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "configs" / "quickstart.py"


def tiny_config(data_dir, arg="smoke"):
    """The quickstart's smoke config, shrunk further: compilation is all that takes time."""
    spec = importlib.util.spec_from_file_location("quickstart_config", QUICKSTART)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg)
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


def as_flags(config, prefix="config"):
    """The config as --config.key=value flags."""
    flags = []
    for key, value in config.items():
        name = f"{prefix}.{key}"
        flags += as_flags(value, name) if hasattr(value, "items") else [f"--{name}={value}"]
    return flags


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def snapshot(folder):
    """Every file's path and content, to see whether anything was touched."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
