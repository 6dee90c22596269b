"""Configs as plain values: out of a run's JSON, into it, and what differs between two."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lenext.config.base import Config, base_config
from lenext.errors import MISREAD, UserError


def plain(config: Config) -> dict[str, Any]:
    """The config as plain JSON values."""
    return json.loads(config.to_json())


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Keys in which two plain configs differ, as "data.batch_size (64, was 32)"."""
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        return [] if ours == theirs else [f"{path} ({ours!r}, was {theirs!r})"]
    found = []
    for key in dict.fromkeys([*ours, *theirs]):
        name = f"{path}.{key}" if path else str(key)
        if key not in ours or key not in theirs:
            found.append(f"{name} ({'new' if key in ours else 'gone'})")
        else:
            found += differences(ours[key], theirs[key], name)
    return found


def to_config(stored: Mapping[str, Any]) -> Config:
    """A config from a run's plain one.

    Raises:
      UserError: for a key that there is no more, or a value of another kind than it has.
    """
    config = base_config()
    one = config.evaluators.validation
    try:
        # Their names are the run's own.
        config.evaluators = ConfigDict({name: one for name in stored.get("evaluators", {})})
        config.update(stored)
    except MISREAD as error:
        raise UserError(f"the run's config.json: {error}") from None
    if null := _null(config):  # which an update lets pass
        raise UserError(f"the run's config.json: {null}: should not be null")
    return config


def _null(config: Config, path: str = "") -> str:
    """The first key whose value is None, which none has by default; "" where there is none."""
    for key, value in config.items():
        name = f"{path}.{key}" if path else key
        if value is None:
            return name
        if isinstance(value, ConfigDict) and (found := _null(value, name)):
            return found
    return ""
