"""RoPE as a config.json of Hugging Face's transformers says it, as one of our methods."""

import math
from collections.abc import Callable, Mapping, Set
from types import MappingProxyType
from typing import Any, NamedTuple

from lenext.errors import UserError
from lenext.importing.keys import Keys, read_number

OF_ALL = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings",
    "partial_rotary_factor",
}  # fmt: skip


def rope_method(
    keys: Keys,
    length: int,
    *,
    head_dim: int = 0,
    theta: str = "rope_theta",
    share: str = "partial_rotary_factor",
    default_share: float = 1.0,
    also: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The method, such as "yarn(base=10000.0,pairing='halves',scale=4.0,original_length=4096)".

    Args:
      keys: of the config, in which "rope_parameters", or "rope_theta" and "rope_scaling", say it.
      length: "max_position_embeddings".
      head_dim: H, where the family may turn a share of it only; 0 where it does not.
      theta: the key of the base, in older files.
      share: likewise, of that share.
      default_share: where nothing says it.
      also: other names of kinds of scaling.

    Raises:
      UserError: for a kind of scaling, or a key of it, that is not supported.
    """
    base = keys.number(theta, 10000.0)
    scaling = _scaling(keys, also)
    options: dict[str, Any] = {"base": scaling.number("rope_theta", base), "pairing": "halves"}
    original = _original_length(keys, scaling, length)
    if head_dim:
        turned = _turned(scaling, head_dim, keys.number(share, default_share))
        if turned < head_dim:
            options["rotary_dim"] = turned
    else:
        keys.only("partial_rotary_factor", 1.0)
        if scaling.given.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{scaling.where}: partial_rotary_factor is not supported")
    kind = KINDS[scaling.kind]
    for key in sorted(scaling.given.keys() - OF_ALL - kind.keys):
        raise UserError(f"{scaling.where}: key {key!r} is not supported with type {scaling.kind!r}")
    pairs = options.get("rotary_dim", head_dim) // 2
    options |= kind.options(scaling, length, original, pairs)
    return f"{kind.method}({','.join(f'{key}={value!r}' for key, value in options.items())})"


class _Scaling(NamedTuple):
    """What a config says of the scaling of its rotations.

    Attributes:
      kind: of `KINDS`.
      given: its keys that have a value.
      where: they stand, for messages.
    """

    kind: str
    given: dict[str, Any]
    where: str

    def number(self, key: str, default: float | None = None) -> float:
        """The number that a key has."""
        return read_number(self.given.get(key, default), f"{self.where}: {key}")


def _scaling(keys: Keys, also: Mapping[str, str]) -> _Scaling:
    """What "rope_scaling" says, or "rope_parameters", as it is called since transformers 5."""
    older, newer = keys.get("rope_scaling", {}), keys.get("rope_parameters", {})
    if older and newer and older != newer:  # the older one counts, and loses the newer one's base
        raise UserError(
            f"{keys.path}: rope_scaling and rope_parameters differ; take one of them out"
        )
    scaling = _of_all_layers(keys, older or newer)
    where = f"{keys.path}: rope_scaling"
    if not isinstance(scaling, Mapping):
        raise UserError(f"{where}: should be an object")
    given: dict[str, Any] = {key: x for key, x in scaling.items() if x is not None}
    kind = given.get("rope_type", given.get("type", "default"))
    kind = also.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{where}: type {kind!r} is not supported, only {', '.join(KINDS)}")
    return _Scaling(kind, given, where)


def _original_length(keys: Keys, scaling: _Scaling, length: int) -> int:
    """Of the training before the scaling, which the kinds that keep rotations want."""
    key = "original_max_position_embeddings"
    default = None if scaling.kind == "longrope" else length
    # Where a model has it beside, transformers prefers that.
    original = keys.get(key, scaling.given.get(key, default))
    if scaling.kind in ("yarn", "llama3", "longrope") and (
        type(original) is not int or original < 2
    ):
        raise UserError(f"{scaling.where}: {key}={original!r}: should be a whole number")
    return original


def _turned(scaling: _Scaling, head_dim: int, share: float) -> int:
    """How many of a head's dimensions turn."""
    part = scaling.number("partial_rotary_factor", share)
    turned = int(head_dim * part)
    if turned % 2 or not 2 <= turned <= head_dim:
        raise UserError(
            f"{scaling.where}: partial_rotary_factor={part!r}: should leave an even number of the "
            f"{head_dim} dimensions of a head to turn, and leaves {turned}"
        )
    return turned


def _yarn(scaling: _Scaling, length: int, original: int, pairs: int) -> dict[str, Any]:
    factor = scaling.number("factor", length / original)
    if scaling.given.get("truncate", True) is not True:
        raise UserError(f"{scaling.where}: truncate={scaling.given['truncate']!r} is not supported")
    return {
        "scale": factor,
        "original_length": original,
        "fast_turns": scaling.number("beta_fast", 32.0),
        "slow_turns": scaling.number("beta_slow", 1.0),
        "attention_factor": _attention_factor(scaling, factor),
    }


def _llama3(scaling: _Scaling, length: int, original: int, pairs: int) -> dict[str, Any]:
    return {
        "scale": scaling.number("factor"),
        "original_length": original,
        "fast_turns": scaling.number("high_freq_factor"),
        "slow_turns": scaling.number("low_freq_factor"),
    }


def _longrope(scaling: _Scaling, length: int, original: int, pairs: int) -> dict[str, Any]:
    options = {
        "scale": max(1.0, scaling.number("factor", length / original)),
        "original_length": original,
        "factors": _factors(scaling, "long_factor", pairs),
        "short_factors": _factors(scaling, "short_factor", pairs),
    }
    if "attention_factor" in scaling.given:
        options["attention_factor"] = scaling.number("attention_factor")
    return options


class _Kind(NamedTuple):
    """A kind of scaling.

    Attributes:
      method: of ours.
      keys: that it has beside those of all kinds.
      options: of the method, from (scaling, length, original length, pairs of dimensions that
        turn or 0).
    """

    method: str
    keys: Set[str]
    options: Callable[[_Scaling, int, int, int], dict[str, Any]]


KINDS = {
    "default": _Kind("softmax", set(), lambda scaling, *_: {}),
    "linear": _Kind("pi", set(), lambda scaling, *_: {"scale": scaling.number("factor")}),
    "dynamic": _Kind(
        "dynamic_ntk",
        set(),
        lambda scaling, length, *_: {"scale": scaling.number("factor"), "original_length": length},
    ),
    # "finetuned" is told by models older than transformers' own YaRN, and has no effect.
    "yarn": _Kind(
        "yarn",
        {"beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate",
         "finetuned"},
        _yarn,
    ),
    "llama3": _Kind("llama3", {"low_freq_factor", "high_freq_factor"}, _llama3),
    "longrope": _Kind(
        "longrope", {"short_factor", "long_factor", "attention_factor"}, _longrope
    ),
}  # fmt: skip
"""By the name that a config.json has for it."""


def _factors(scaling: _Scaling, key: str, pairs: int) -> tuple[float, ...]:
    """One a pair of dimensions that turn; any number of them where `pairs` is 0."""
    factors, where = scaling.given.get(key), f"{scaling.where}: {key}"
    if not isinstance(factors, list) or len(factors) != (pairs or len(factors)):
        count = f"{len(factors)} numbers" if isinstance(factors, list) else repr(factors)
        raise UserError(f"{where}: should be {pairs or 'some'} numbers, and is {count}")
    return tuple(read_number(x, where) for x in factors)


def _of_all_layers(keys: Keys, scaling: Any) -> Any:
    """What is said once, or by type of layer, as transformers 5 may write it, and alike for all.

    Raises:
      UserError: types of layers differ.
    """
    types = keys.content.get("layer_types")
    named = types if isinstance(types, list) else ()
    if not isinstance(scaling, Mapping) or not scaling or not all(key in named for key in scaling):
        return scaling
    first, *others = scaling.values()
    if any(other != first for other in others):
        raise UserError(
            f"{keys.path}: rope_parameters: differ between {' and '.join(scaling)}, which is not "
            f"supported in a {keys.content.get('model_type')}"
        )
    return first


def _attention_factor(scaling: _Scaling, factor: float) -> float:
    """What q and k are each multiplied by."""
    if "attention_factor" in scaling.given:
        return scaling.number("attention_factor")

    def magnitude(share: float) -> float:
        return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.given.get("mscale") and scaling.given.get("mscale_all_dim"):
        return magnitude(scaling.number("mscale")) / magnitude(scaling.number("mscale_all_dim"))
    return magnitude(1.0)
