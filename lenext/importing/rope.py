"""RoPE as a config.json of Hugging Face's transformers says it, as one of our methods."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lenext.errors import UserError
from lenext.importing.keys import Keys, read_number

OF_ALL = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings",
    "partial_rotary_factor",
}  # fmt: skip
# "finetuned" is told by models older than transformers' own YaRN, and has no effect.
YARN = {
    "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate",
    "finetuned",
}  # fmt: skip
LLAMA3 = {"low_freq_factor", "high_freq_factor"}
LONGROPE = {"short_factor", "long_factor", "attention_factor"}


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
    older, newer = keys.get("rope_scaling", {}), keys.get("rope_parameters", {})
    if older and newer and older != newer:  # the older one counts, and loses the newer one's base
        raise UserError(
            f"{keys.path}: rope_scaling and rope_parameters differ; take one of them out"
        )
    scaling = _of_all_layers(keys, older or newer)
    keys.asked.add("original_max_position_embeddings")
    if head_dim:
        default_share = keys.number(share, default_share)
    else:
        keys.only("partial_rotary_factor", 1.0)
    where = f"{keys.path}: rope_scaling"
    if not isinstance(scaling, Mapping):
        raise UserError(f"{where}: should be an object")
    given: dict[str, Any] = {key: x for key, x in scaling.items() if x is not None}
    kind = given.get("rope_type", given.get("type", "default"))
    kind = also.get(kind, kind) if isinstance(kind, str) else kind
    known = {
        "default": set(), "linear": set(), "dynamic": set(), "yarn": YARN, "llama3": LLAMA3,
        "longrope": LONGROPE,
    }  # fmt: skip
    if not isinstance(kind, str) or kind not in known:
        raise UserError(f"{where}: type {kind!r} is not supported, only {', '.join(known)}")

    def number(key: str, default: float | None = None) -> float:
        return read_number(given.get(key, default), f"{where}: {key}")

    options: dict[str, Any] = {"base": number("rope_theta", base), "pairing": "halves"}
    # Where a model has it beside, transformers prefers that.
    original = keys.get(
        "original_max_position_embeddings",
        given.get("original_max_position_embeddings", None if kind == "longrope" else length),
    )
    if kind in ("yarn", "llama3", "longrope") and (type(original) is not int or original < 2):
        raise UserError(
            f"{where}: original_max_position_embeddings={original!r}: should be a whole number"
        )
    if head_dim:
        part = number("partial_rotary_factor", default_share)
        turned = int(head_dim * part)
        if turned % 2 or not 2 <= turned <= head_dim:
            raise UserError(
                f"{where}: partial_rotary_factor={part!r}: should leave an even number of the "
                f"{head_dim} dimensions of a head to turn, and leaves {turned}"
            )
        if turned < head_dim:
            options["rotary_dim"] = turned
    elif given.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor is not supported")
    for key in sorted(given.keys() - OF_ALL - known[kind]):
        raise UserError(f"{where}: key {key!r} is not supported with type {kind!r}")
    name = "softmax"
    if kind == "linear":
        name, options["scale"] = "pi", number("factor")
    elif kind == "dynamic":
        name = "dynamic_ntk"
        options |= {"scale": number("factor"), "original_length": length}
    elif kind == "yarn":
        name = "yarn"
        scale = number("factor", length / original)
        if given.get("truncate", True) is not True:
            raise UserError(f"{where}: truncate={given['truncate']!r} is not supported")
        options |= {
            "scale": scale,
            "original_length": original,
            "fast_turns": number("beta_fast", 32.0),
            "slow_turns": number("beta_slow", 1.0),
            "attention_factor": _attention_factor(given, scale, number),
        }
    elif kind == "llama3":
        name = "llama3"
        options |= {
            "scale": number("factor"),
            "original_length": original,
            "fast_turns": number("high_freq_factor"),
            "slow_turns": number("low_freq_factor"),
        }
    elif kind == "longrope":
        name, pairs = "longrope", options.get("rotary_dim", head_dim) // 2
        options |= {
            "scale": max(1.0, number("factor", length / original)),
            "original_length": original,
            "factors": _factors(given, "long_factor", pairs, where),
            "short_factors": _factors(given, "short_factor", pairs, where),
        }
        if "attention_factor" in given:
            options["attention_factor"] = number("attention_factor")
    return f"{name}({','.join(f'{key}={value!r}' for key, value in options.items())})"


def _factors(given: Mapping[str, Any], key: str, pairs: int, where: str) -> tuple[float, ...]:
    """One a pair of dimensions that turn; any number of them where `pairs` is 0."""
    factors = given.get(key)
    if not isinstance(factors, list) or len(factors) != (pairs or len(factors)):
        count = f"{len(factors)} numbers" if isinstance(factors, list) else repr(factors)
        raise UserError(f"{where}: {key}: should be {pairs or 'some'} numbers, and is {count}")
    return tuple(read_number(x, f"{where}: {key}") for x in factors)


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


def _attention_factor(given: Mapping[str, Any], scale: float, number: Any) -> float:
    """What q and k are each multiplied by."""
    if "attention_factor" in given:
        return number("attention_factor")

    def magnitude(share: float) -> float:
        return 0.1 * share * math.log(scale) + 1.0 if scale > 1 else 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return magnitude(number("mscale")) / magnitude(number("mscale_all_dim"))
    return magnitude(1.0)
