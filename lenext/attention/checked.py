"""What a choice on an axis returns is checked where it is called: while tracing, at no cost later.

Python would broadcast most mistakes into a result that looks right.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp


def checked(
    x: Any, axis: Any, what: str, form: str, sizes: Mapping[str, int], kind: Any = jnp.floating
) -> Any:
    """`x`, which `what` of an axis returned, if it is such an array.

    Args:
      x: the array.
      axis: the choice that made it, named in the message.
      what: the method of it that did, likewise.
      form: an axis a word, such as "B? N? T? 1"; with a question mark it may be 1 instead.
      sizes: what the letters stand for; one without a size may be any.
      kind: what the array's type is to be a subtype of.

    Raises:
      ValueError: if `x` is no array, or one of another shape or type.
    """
    said = f"{what} of {type(axis).__name__} returned"
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise ValueError(f"{said} {x!r}: should be an array")
    names = [name.rstrip("?") for name in form.split()]
    ones = [name.endswith("?") for name in form.split()]
    wanted = [1 if name == "1" else sizes.get(name) for name in names]
    fits = len(x.shape) == len(names) and all(
        size is None or have == size or (one and have == 1)
        for have, size, one in zip(x.shape, wanted, ones, strict=True)
    )
    if not fits:
        numbers = ["any" if size is None else size for size in wanted]
        letters, numbers = (_listed(words, ones) for words in (names, numbers))
        raise ValueError(f"{said} {tuple(x.shape)}: should be {letters} = {numbers}")
    if not jnp.issubdtype(x.dtype, kind):
        raise ValueError(f"{said} {x.dtype}: should be {kind.__name__}")
    return x


def _listed(words: Sequence[Any], ones: Sequence[bool]) -> str:
    may_be_one = (one and word != 1 for word, one in zip(words, ones, strict=True))
    pairs = zip(words, may_be_one, strict=True)
    return "[" + ", ".join(f"{word} or 1" if one else f"{word}" for word, one in pairs) + "]"
