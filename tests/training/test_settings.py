"""Values of the sections `optimizer` and `training` that are refused before anything is done."""

import pytest

from lenext.config import base_config, plain, validate
from lenext.errors import UserError


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
        ("training", {"branch_step": -1}, "training.branch_step=-1: should be at least 0"),
        ("training", {"branch_step": 5}, "training.branch_step=5: should be 0 without branch_from"),
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
    ],
)
def test_may_be_given(section, values):
    config = base_config()
    config[section].update(values)
    before = plain(config)
    validate(config)
    assert plain(config) == before
