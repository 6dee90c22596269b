"""What the harness calls model_args: "KEY=VALUE,KEY=VALUE", in which a value may hold commas."""

from typing import Any

from lenext.errors import UserError


def split_arguments(text: str) -> dict[str, str]:
    """Keys and values of "workdir=DIR,method=a(b=1,c=2)+d".

    Commas in brackets are the value's, and so are those in quotes, which are taken off where they
    surround all of a value.

    Raises:
      UserError: for what is not of that form.
    """
    found: dict[str, str] = {}
    for item in _items(text):
        key, equals, value = item.strip().partition("=")
        value = value.strip()
        if not equals or not key:
            raise UserError(f"model_args {text!r}: {item!r} should be KEY=VALUE")
        if key in found:
            raise UserError(f"model_args {text!r}: {key} is given twice")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        found[key] = value[1:-1] if quoted else value
    return found


def _items(text: str) -> list[str]:
    items, start, depth, quote, before = [], 0, 0, "", ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        # Elsewhere an apostrophe is one, such as a path's.
        elif character in "'\"" and (depth or before == "="):
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth = max(0, depth - 1)
        elif character == "," and not depth:
            items.append(text[start:at])
            start = at + 1
        before = character
    return [item for item in [*items, text[start:]] if item.strip()]


def whole_number(key: str, value: Any, least: int, most: int | None = None) -> int:
    """A value as the whole number that it is, or spells.

    Raises:
      UserError: it is none, or not from `least` to `most`.
    """
    right = f"a whole number from {least}" + (" up" if most is None else f" to {most}")
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        raise UserError(f"{key}={value}: should be {right}")
    return number
