"""What a method is: one choice on each of five independent axes.

    logits_ij = gain_ij * temperature_i * similarity(rotate(q_i), rotate(k_j)) + bias_ij
    weights_i = weighting(logits_i over the keys visible to i)
    out_i     = sum_j weights_ij v_j

`Position` gives the rotations, gain and bias; `Similarity`, `Temperature`, `Weighting` and
`Visibility` the rest. Each axis class is a small frozen dataclass with one pure function; its
`option` fields are what a user may set. Everything an axis may ask about where it stands is in
`Rows`.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

Params = dict[str, Any]

MOST_TOKENS = 2**31
"""What lengths and windows stay below: positions are int32."""


def option(
    default: Any,
    kind: type,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: tuple = (),
) -> Any:
    """Declares a dataclass field that users may set by name; checked when the axis is built.

    The bounds are those of a number, or of each number in a tuple (`kind=tuple`).
    """
    rule = {"kind": kind, "choices": choices}
    rule["bounds"] = {"at least": at_least, "at most": at_most, "above": above}
    return dataclasses.field(default=default, metadata={"option": rule})


HOLDS = {"at least": operator.ge, "at most": operator.le, "above": operator.gt}


def _complaint(
    value: Any, kind: type, choices: tuple, bounds: dict[str, float | None]
) -> str | None:
    """What an option should have been, or None if it is fine."""
    if choices:
        return None if value in choices else "one of " + ", ".join(map(repr, choices))
    if kind is bool:
        return None if isinstance(value, bool) else "True or False"
    if kind is tuple:
        if not isinstance(value, tuple):
            return "a tuple of numbers"
        complaints = [_complaint(x, float, (), bounds) for x in value]
        return next((f"a tuple of numbers, each {c}" for c in complaints if c), None)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or (kind is int and value != int(value)):
        return "a whole number" if kind is int else "a finite number"
    for word, bound in bounds.items():
        if bound is not None and not HOLDS[word](value, bound):
            return f"{word} {bound:g}"
    return None


@dataclasses.dataclass(frozen=True)
class Axis:
    """One choice on one axis. Frozen and hashable; fields made by `option` are its options."""

    trained_kind: ClassVar[str] = "any"
    """Weights trained under one kind are not meant for another; "any" suits all."""
    calibrated: ClassVar[bool] = False
    """Whether its parts are to be measured on trained weights, in place of their initial values."""

    def __post_init__(self):
        for field in self.option_fields():
            value, rule = getattr(self, field.name), field.metadata["option"]
            if value is None and field.default is None:
                continue
            complaint = _complaint(value, **rule)
            if complaint:
                raise ValueError(f"option {field.name}={value!r}: should be {complaint}")

    @classmethod
    def option_fields(cls) -> list[dataclasses.Field]:
        """The dataclass fields that users may set."""
        return [field for field in dataclasses.fields(cls) if "option" in field.metadata]

    @property
    def kind(self) -> str:
        """What weights must have been trained under for this choice to suit them."""
        return self.trained_kind

    def resolve(self, train_length: int) -> "Axis":
        """Fills in the defaults that depend on the training length."""
        del train_length
        return self

    def init_params(self, num_heads: int, head_dim: int, train_length: int) -> Params:
        """Initial values of this choice's learned parts; {} where it has none."""
        del num_heads, head_dim, train_length
        return {}


@dataclasses.dataclass(frozen=True)
class Windowed(Axis):
    """A choice with a window, in tokens, of L by default."""

    window: int | None = option(None, int, at_least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.window is not None and self.window >= MOST_TOKENS:
            raise ValueError(f"option window={self.window!r}: should be below 2^31")

    @property
    def reach(self) -> int:
        """The window, once `resolve` has filled it in."""
        if self.window is None:
            raise ValueError("window is not set: build methods with make_method")
        return self.window

    def resolve(self, train_length: int) -> "Windowed":  # noqa: D102
        return dataclasses.replace(self, window=self.window or train_length)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the query rows at hand stand: all that an axis may ask for besides vectors.

    B is the batch size, or 1 where every sequence of the batch stands alike.

    Attributes:
      n: number of keys visible to each row (at least 1, so that logs are finite).
      q_positions: absolute positions of the queries.
      kv_positions: absolute positions of the keys.
      delta: query position less key position.
      start: position at which each row's own document starts.
      kv_ordinals: each key's place in its own document, from 0.
      causal: whether keys after the query are hidden.
      train_length: L, the length trained at.
      q_lengths: tokens in each query's document, for what follows the length; an int where that is
        known beforehand, and the same everywhere.
      kv_lengths: the same of the keys.
      num_heads: N, query heads.
      head_dim: H, key size per head.
    """

    n: Float[Array, "#B 1 T 1"]
    q_positions: Int[Array, "#B T"]
    kv_positions: Int[Array, "#B S"]
    delta: Int[Array, "#B 1 T S"]
    start: Int[Array, "#B 1 T 1"]
    kv_ordinals: Int[Array, "#B S"]
    causal: bool
    train_length: int
    q_lengths: int | Int[Array, "#B T"]
    kv_lengths: int | Int[Array, "#B S"]
    num_heads: int
    head_dim: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """One pair of rotations and where it counts.

    Phases are in units of 2**-32 turns (see `position.phase`); None leaves vectors as they are.
    `where` selects the entries this piece is for; None selects all.
    """

    q_phase: UInt32[Array, "#B #T P"] | None = None
    k_phase: UInt32[Array, "#B S P"] | None = None
    where: Bool[Array, "#B 1 T S"] | None = None


class Position(Axis):
    """How positions enter: rotations of q and k, and a gain and a bias on the logits."""

    @property
    def follows_length(self) -> bool:
        """Whether rotations, gain or bias depend on `Rows.q_lengths` and `kv_lengths`."""
        return False

    def arrange(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        """Reorders dimensions so that the pair (p, p + H/2) turns together."""
        return x

    def pieces(self, rows: Rows) -> Sequence[Piece]:
        """Rotations; later pieces overrule earlier ones where they select."""
        del rows
        return [Piece()]

    def gain(self, rows: Rows) -> Array | float | None:
        """Factor on the logits, broadcastable to [B, N, T, S]; None for 1."""
        del rows
        return None

    def bias(self, rows: Rows, params: Params) -> Array | None:
        """Term added to the logits, broadcastable to [B, N, T, S]; None for 0."""
        del rows, params
        return None


class Similarity(Axis):
    """How alike a (rotated) query and key are: the dot product of what is made of each."""

    def of_queries(self, q: Float[Array, "B T N H"]) -> Float[Array, "B T N I"]:
        """The queries' side of the product."""
        return q

    def of_keys(self, k: Float[Array, "B S K H"]) -> Float[Array, "B S K I"]:
        """The keys' side of the product."""
        return k


class Temperature(Axis):
    """A factor on the similarity, one a row (never on bias or mask)."""

    def __call__(
        self, rows: Rows, q: Float[Array, "B T N H"], params: Params
    ) -> Float[Array, "#B #N #T 1"]:
        """The factor; `q` is the query before rotation."""
        del q, params
        return jnp.ones_like(rows.n)


class Weighting(Axis):
    """Turns complete rows of logits into weights."""

    def __call__(
        self, logits: Float[Array, "B N T S"], mask: Bool[Array, "#B 1 T S"], rows: Rows
    ) -> Float[Array, "B N T S"]:
        """Weights, 0 where `mask` is False, all 0 in a row that sees nothing."""
        raise TypeError(f"{type(self).__name__} defines no weighting")


class Visibility(Axis):
    """Which keys a row sees, before causality, padding and documents are taken into account."""

    def __call__(
        self, delta: Int[Array, "#B 1 #T S"], ordinal: Int[Array, "#B 1 #T S"]
    ) -> Bool[Array, "#B 1 #T S"] | None:
        """True where visible; None sees all. `ordinal` counts keys from the document's start."""
        del delta, ordinal
        return None

    def keeps(self) -> tuple[int, int] | None:
        """How many first and last keys of a document causal rows to come may see; None for all."""
        return None


AXES = ("position", "similarity", "temperature", "weighting", "visibility")


@dataclasses.dataclass(frozen=True)
class Method:
    """An attention method: one choice on each axis and the training length L (in tokens).

    Frozen, hashable, and equal to any method of the same choices; `name` does not count.
    """

    position: Position
    similarity: Similarity
    temperature: Temperature
    weighting: Weighting
    visibility: Visibility
    train_length: int
    name: str = dataclasses.field(default="", compare=False)

    @property
    def follows_length(self) -> bool:
        """Whether anything depends on how many tokens a document has, see `attend`'s `length`."""
        return self.position.follows_length

    def axes(self) -> dict[str, Axis]:
        """The five choices by axis name."""
        return {axis: getattr(self, axis) for axis in AXES}


def init_params(method: Method, num_heads: int, head_dim: int) -> Params:
    """Initial values of a method's learned parts, by axis; {} where nothing is learned.

    Deterministic: the papers start these parts at constants.
    """
    params = {
        axis: choice.init_params(num_heads, head_dim, method.train_length)
        for axis, choice in method.axes().items()
    }
    return {axis: values for axis, values in params.items() if values}


def unsuited_axes(method: Method, trained: Method) -> list[str]:
    """Axes in which `method` wants weights trained for it and `trained` was something else.

    Empty for a training-free change, such as another temperature law or a clamped distance.
    Learned parts count: swapped in, they stand at their initial values.
    """
    ours, theirs = method.axes(), trained.axes()
    return [axis for axis in AXES if ours[axis].kind not in ("any", theirs[axis].kind)]
