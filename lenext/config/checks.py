"""What configs are checked with: values read off them, and checks that end in one line.

What a section may say, who reads it checks: `lenext.models`, `lenext.data`, `lenext.evaluation`,
`lenext.training`.
"""

import math
from collections.abc import Iterable

import numpy as np

from lenext.config.base import Config
from lenext.config.plain import differences, plain
from lenext.errors import UserError


def read_lengths(text: str, key: str = "config.eval.lengths") -> list[int]:
    """Lengths from "64,256"; `key` is where they were given, for messages.

    Raises:
      UserError: for what is no whole number from 2 up.
    """
    words = [word.strip() for word in str(text).split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) >= 2 for word in words):
        raise UserError(f"{key} {text!r}: should be whole numbers of 2 and more")
    return list(dict.fromkeys(int(word) for word in words))


def check_model(ours: Config, theirs: Config, where: str) -> None:
    """Checks that two sections `model` describe the same weights, by more than their shapes.

    The method may differ, and what changes no weight: types, dropout, rematerialisation. A
    vocabulary is compared by its size, not by what the config says.

    Args:
      ours: the one given.
      theirs: of the run.
      where: the run's workdir.

    Raises:
      UserError: naming the keys that differ.
    """
    free = ("method", "dtype", "param_dtype", "dropout", "remat", "vocab_size")
    given, stored = (
        {key: value for key, value in plain(config).items() if key not in free}
        for config in (ours, theirs)
    )
    found = differences(given, stored, "config.model")
    if found:
        raise UserError(f"{', '.join(found)}: should be as {where} was trained")


def check_positions(model: Config, length: int, key: str) -> None:
    """Checks that a model has learned as many positions as it is to see.

    Args:
      model: section of the config.
      length: tokens.
      key: what asks for so many.

    Raises:
      UserError: it has fewer.
    """
    if 0 < model.max_positions < length:
        raise UserError(
            f"{key}: {length} tokens; should be at most config.model.max_positions="
            f"{model.max_positions}, as positions that are learned do not go on"
        )


def check_choices(section: Config, where: str, /, **choices: Iterable[str]) -> None:
    """Checks that keys of a section, called `where`, are among what they may be.

    Raises:
      UserError: naming the first that is not, and the choices.
    """
    for key, allowed in choices.items():
        if section[key] not in allowed:
            choice = ", ".join(word for word in allowed if word)
            empty = "empty or " if "" in allowed else ""
            raise UserError(
                f"config.{where}.{key}={section[key]!r}: should be {empty}one of {choice}"
            )


def check_least(section: Config, where: str, /, least: float, *keys: str) -> None:
    """Checks that keys of a section, called `where`, are at least `least`, and finite.

    Raises:
      UserError: naming the first that is not.
    """
    for key in keys:
        if not section[key] >= least:  # nor is NaN
            raise UserError(f"config.{where}.{key}={section[key]}: should be at least {least}")
        if section[key] == math.inf:
            raise UserError(f"config.{where}.{key}=inf: should be a finite number")


def check_bounds(section: Config, where: str, /, *keys: str) -> None:
    """Checks that keys of a section, called `where`, are from 0 to below 1, also as float32.

    Raises:
      UserError: naming the first that is not.
    """
    for key in keys:
        if not 0 <= section[key] < 1:
            raise UserError(f"config.{where}.{key}={section[key]}: should be from 0 to below 1")
        if np.float32(section[key]) == 1:  # 1 less it would be 0, and is divided by
            largest = np.nextafter(np.float32(1), np.float32(0))
            raise UserError(
                f"config.{where}.{key}={section[key]}: is 1 as float32; should be at most "
                f"{largest:.16g}"
            )


def check_above(section: Config, where: str, /, *keys: str) -> None:
    """Checks that keys of a section, called `where`, are above 0, also as float32.

    Raises:
      UserError: naming the first that is not.
    """
    for key in keys:
        if not section[key] > 0:
            raise UserError(f"config.{where}.{key}={section[key]}: should be above 0")
        least = np.finfo(np.float32).tiny  # XLA takes what is closer to 0 for 0
        if section[key] < least:
            raise UserError(
                f"config.{where}.{key}={section[key]}: is 0 as float32; should be at least "
                f"{least:.2g}"
            )


def check_seed(seed: int, key: str) -> None:
    """Checks that a seed, of that key, is one.

    Raises:
      UserError: it is not.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"config.{key}={seed}: should be from 0 to 2^32 - 1")
