"""Methods that users name, whose mistakes end in one line."""

from collections.abc import Sequence

from lenext.attention import AnyMethod, HeadMethods, methods_of
from lenext.attention.catalogue import make_pattern
from lenext.attention.grammar import Pattern, split_list
from lenext.errors import UserError


def read_methods(
    text: str,
    train_length: int,
    trained: Sequence[AnyMethod] = (),
    *,
    head_dim: int = 0,
    num_heads: int = 0,
    causal: bool = True,
) -> Pattern[AnyMethod]:
    """The methods of a pattern over layers, see `lenext.attention.make_pattern`.

    Args:
      text: the pattern.
      train_length: L.
      trained: of every layer, what its weights were trained with.
      head_dim: H, that options which count dimensions are to fit; 0 where it is not known.
      num_heads: N, that shares of heads are to fit; 0 where it is not known.
      causal: whether they are for a causal model.

    Raises:
      UserError: for an unknown method or option, or none at all; for an option that H does not fit,
        or shares that N does not; for a method that is defined for causal models only, where the
        model is none.
    """
    if isinstance(text, str) and not text.strip():
        raise UserError(f"method {text!r}: should name at least one method")
    try:
        methods = make_pattern(text, train_length=train_length, trained=trained)
        for method in methods:
            if num_heads and isinstance(method, HeadMethods):
                method.of_heads(num_heads)
            for own in methods_of(method) if head_dim else ():
                own.position.turned(head_dim)
    except ValueError as error:
        raise UserError(str(error)) from None
    only = [method.name for method in methods if method.causal_only and not causal]
    if only:
        raise UserError(
            f"method {only[0]!r}: is for causal models only, and this one is not causal"
        )
    return methods


def list_methods(text: str, key: str) -> list[str]:
    """The members of a list of methods, as they were written.

    Raises:
      UserError: for none, naming `key`, or for what is no list of methods.
    """
    try:
        members = split_list(text)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    if not members:
        raise UserError(f"{key}: should name at least one method")
    return members
