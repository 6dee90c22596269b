"""The sizes at which experiments run: what a machine can train, and how many seeds."""

import copy
from typing import NamedTuple

from configs import decoder, gau_alpha, quickstart
from lenext.config import Config
from lenext.errors import UserError

SIZES = ("smoke", "cpu", "gpu", "paper")
LENGTHS = (1, 2, 4, 8, 16, 32, 64)  # of an evaluation, in training lengths


class Size(NamedTuple):
    """A config that an experiment's runs start from, and the seeds of each run."""

    config: Config
    seeds: tuple[int, ...]


def check_size(size: str) -> None:
    """Checks a size's name.

    Raises:
      UserError: naming the choices.
    """
    if size not in SIZES:
        raise UserError(f"--size={size}: choose from {', '.join(SIZES)}")


def encoder(size: str) -> Size:
    """A GAU trained as a masked language model, evaluated at up to 64 times its length.

    cpu is the quickstart's model; gpu has ten times its parameters; paper is the InfoScale paper's
    model, trained from scratch.
    """
    check_size(size)
    configs = {
        "smoke": lambda: quickstart.get_config("smoke"),
        "cpu": quickstart.get_config,
        "gpu": lambda: gau_alpha.get_config("small"),
        "paper": lambda: gau_alpha.get_config("paper"),
    }
    config = configs[size]()
    if size != "smoke":
        config.eval.update(documents=24, tokens=49152)
        config.eval.lengths = ",".join(str(n * config.data.train_length) for n in LENGTHS)
    return Size(config, (0,) if size == "smoke" else (0, 1, 2))


def with_changes(config: Config, **changes: object) -> Config:
    """A copy with some keys changed; sections and keys are joined by two underscores."""
    changed = copy.deepcopy(config)
    for path, value in changes.items():
        section, _, key = path.partition("__")
        changed[section][key] = value
    return changed
