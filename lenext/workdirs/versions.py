"""Versions of results, raised by hand, and what else decides whether a result is still good.

Whoever changes what a training or an evaluation computes raises the number here; whoever moves,
renames or rewrites code that computes the same leaves it. `tests/workdirs/test_versions.py` holds
short runs against figures that were made at these numbers, and fails where one changed alone.
"""

import functools
import hashlib
import inspect
import marshal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lenext.attention.axes.method import AXES
from lenext.attention.catalogue import BUILT_IN, CATALOGUE
from lenext.attention.grammar import names

TRAINING_VERSION = 2
"""Of what a config trains: initial values, order of the data, masks, steps."""
FIGURES_VERSION = 2
"""Of what is measured on trained weights: documents, methods, figures, intervals."""

OURS = ("lenext", "abc", "typing")
"""Packages whose classes count by the versions above."""


def results_version() -> dict[str, int]:
    """Both numbers, as JSON values."""
    return {"training": TRAINING_VERSION, "figures": FIGURES_VERSION}


def changes(config: Mapping[str, Any], defaults: Mapping[str, Any], path: str = "") -> dict:
    """What a plain config changes of the defaults, by path; None for what it lacks of them.

    So a key that comes new, at a default that means how things were, changes nothing.
    """
    found: dict[str, Any] = {}
    for key in sorted({*config, *defaults}):
        name = f"{path}.{key}" if path else key
        ours, usual = config.get(key), defaults.get(key)
        if isinstance(ours, Mapping) and isinstance(usual, Mapping):
            found |= changes(ours, usual, name)
        elif ours != usual:
            found[name] = ours
    return found


def outside_sources(texts: Iterable[str]) -> dict[str, list[str]]:
    """For each method in `texts` that lenext does not bring: its axes, and the code that they are.

    Args:
      texts: method strings.

    Returns:
      By name, what its entry chooses and a SHA-256 of each file outside lenext that defines a
      choice, or what the choice derives from, as it was when it was first asked for. The file
      counts as a whole, for a choice may call what stands beside it; of a class that was typed in,
      its compiled functions count. What such files import counts for nothing.
    """
    named = {name for text in texts for name in names(text)}
    found = {}
    for name in sorted(named & (CATALOGUE.keys() - BUILT_IN)):
        axes = [getattr(CATALOGUE[name], axis) for axis in AXES]
        classes = {base for choice in axes for base in type(choice).__mro__ if base is not object}
        digests = {_source(one) for one in classes if one.__module__.split(".")[0] not in OURS}
        found[name] = [*map(repr, axes), *sorted(digests)]
    return found


@functools.cache  # by the class: a file that is changed later does not change what runs here
def _source(choice: type) -> str:
    """SHA-256 of the file that defines a class, or of the functions of one that was typed in."""
    try:
        code = Path(inspect.getfile(choice)).read_bytes()
    except (OSError, TypeError):
        functions = [x for x in vars(choice).values() if inspect.isfunction(x)]
        code = b"".join(marshal.dumps(function.__code__) for function in functions)
    return hashlib.sha256(code).hexdigest()


def changed_sources(texts: Iterable[str], stored: Mapping[str, Any]) -> list[str]:
    """The methods in `texts` whose `outside_sources` are no longer those that were stored."""
    now = outside_sources(texts)
    return [name for name, source in stored.items() if now.get(name, source) != source]
