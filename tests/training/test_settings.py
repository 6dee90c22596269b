"""Values of the config that are refused before anything is done."""

import pytest

from lenext.config import base_config, plain
from lenext.errors import UserError
from lenext.training import validate


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("optimizer", {"decay_steps": -1}, "optimizer.decay_steps=-1: should be at least 0"),
        (
            "optimizer",
            {"schedule": "wsd", "warmup_steps": 900, "decay_steps": 101},
            "optimizer.decay_steps=101: with warmup_steps=900 should be at most "
            "training.steps=1000",
        ),
        ("training", {"accumulate": 0}, "training.accumulate=0: should be at least 1"),
        ("training", {"z_loss": -0.1}, "training.z_loss=-0.1: should be at least 0"),
        ("training", {"z_loss": float("nan")}, "training.z_loss=nan: should be at least 0"),
        ("training", {"ema_decay": 1.0}, "training.ema_decay=1.0: should be from 0 to below 1"),
        ("training", {"ema_decay": -0.1}, "training.ema_decay=-0.1: should be from 0 to below 1"),
        ("training", {"z_loss": float("inf")}, "training.z_loss=inf: should be a finite number"),
        # As float32 they are 1 or 0: steps would divide by 0, or do nothing.
        (
            "optimizer",
            {"b2": 1 - 1e-9},
            "optimizer.b2=0.999999999: is 1 as float32; should be at most 0.9999999403953552",
        ),
        (
            "optimizer",
            {"learning_rate": 1e-40},
            "optimizer.learning_rate=1e-40: is 0 as float32; should be at least 1.2e-38",
        ),
        (
            "optimizer",
            {"clip_norm": 1e-40},
            "optimizer.clip_norm=1e-40: is 0 as float32; should be at least 1.2e-38",
        ),
        (
            "optimizer",
            {"learning_rate": float("inf")},
            "optimizer.learning_rate=inf: should be a finite number",
        ),
        ("training", {"branch_step": -1}, "training.branch_step=-1: should be at least 0"),
        ("training", {"branch_step": 5}, "training.branch_step=5: should be 0 without branch_from"),
        (
            "data",
            {"positions": "skips"},
            "data.positions='skips': should be one of plain, pose, random",
        ),
        (
            "data",
            {"target_length": 1024},
            "data.target_length=1024: should be 0 where positions are plain; say "
            "config.data.positions=pose, or random",
        ),
        (
            "data",
            {"positions": "pose"},
            "data.target_length=0: with positions=pose should be above train_length=64, and below "
            "2^31",
        ),
        (
            "data",
            {"positions": "pose", "target_length": 64},
            "data.target_length=64: with positions=pose should be above train_length=64, and "
            "below 2^31",
        ),
        (
            "data",
            {"positions": "pose", "target_length": 2**31},
            "data.target_length=2147483648: with positions=pose should be above train_length=64, "
            "and below 2^31",
        ),
        ("data", {"pose_chunks": 1}, "data.pose_chunks=1: should be from 2 to train_length=64"),
        ("data", {"pose_chunks": 65}, "data.pose_chunks=65: should be from 2 to train_length=64"),
        (
            "data",
            {"positions": "pose", "target_length": 65, "packing": True},
            "data.packing=True: should be False with positions=pose, which skip within one "
            "document",
        ),
    ],
)
def test_are_named(section, values, message):
    config = base_config()
    config[section].update(values)
    with pytest.raises(UserError) as error:
        validate(config)
    assert str(error.value) == f"config.{message}"


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("optimizer", {"decay_steps": 5000}),  # of no other schedule's business
        ("optimizer", {"schedule": "wsd", "warmup_steps": 900, "decay_steps": 100}),
        ("optimizer", {"schedule": "wsd", "decay_steps": 0}),
        ("training", {"branch_from": "runs/a"}),
        ("training", {"branch_from": "runs/a", "branch_step": 5}),
        ("training", {"ema_decay": 0.9999, "z_loss": 1e-4, "accumulate": 8}),
        ("data", {"positions": "pose", "target_length": 65}),
        ("data", {"positions": "pose", "target_length": 2**31 - 1, "pose_chunks": 64}),
    ],
)
def test_may_be_given(section, values):
    config = base_config()
    config[section].update(values)
    before = plain(config)
    validate(config)
    assert plain(config) == before
