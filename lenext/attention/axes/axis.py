"""What a choice on an axis is, of the five that a method has.

    logits_ij = gain_ij * temperature_i * similarity(rotate(q_i), rotate(k_j)) + bias_ij
    weights_i = weighting(logits_i over the keys visible to i)
    out_i     = sum_j weights_ij v_j

`Position` gives the rotations, gain and bias; `Similarity`, `Temperature`, `Weighting` and
`Visibility` the rest. Each axis class is a small frozen dataclass with one pure function; its
`option` fields are what a user may set. Everything an axis may ask about where it stands is in
`Rows`.

What an implementation has to know of a choice, the choice says itself, by its base class or by one
of the answers declared here: so none of `lenext.attention.compute` knows a choice by name.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

Params = dict[str, Any]
Numbers = dict[str, Float[Array, "#B _ N"]]
"""Gates by name: numbers a token, of queries or of keys, and query head."""

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
    causal_only: ClassVar[bool] = False
    """Whether it is defined for rows that see no key after their query, and for no others."""

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

    def draw_params(self, params: Params, key: Array) -> Params:
        """Those of `init_params` with what the paper draws drawn."""
        del key
        return params

    @property
    def drawn(self) -> bool:
        """Whether anything is drawn."""
        return type(self).draw_params is not Axis.draw_params


class FollowsInput(Axis):
    """A choice that may follow the layer's input, by gates: a few numbers a token and head.

    A model makes them before attention and keeps the keys' beside its cache: what `Rows` hands on.
    """

    @property
    def gated(self) -> bool:
        """Whether it has gates."""
        return type(self).init_gates is not FollowsInput.init_gates

    def init_gates(self, num_heads: int, width: int) -> Params:
        """Initial values of what makes gates of inputs of that width; {} where there are none."""
        del num_heads, width
        return {}

    def gates(
        self, params: Params, x: Float[Array, "B T D"], before: Numbers | None
    ) -> tuple[Numbers, Numbers]:
        """What the inputs of T tokens that follow one another say: (of queries, of keys).

        Args:
          params: as `init_gates` gives them.
          x: the layer's input, float32, as its maps for q, k and v take it.
          before: the keys' gates of the token before the first, each [B, 1, N]; zeros or None where
            there is none.
        """
        raise TypeError(f"{type(self).__name__} defines no gates")


@dataclasses.dataclass(frozen=True)
class Windowed(Axis):
    """A choice with a window, in tokens: of L, unless `usual_window` says otherwise."""

    window: int | None = option(None, int, at_least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.window is not None and self.window >= MOST_TOKENS:
            raise ValueError(f"option window={self.window!r}: should be below 2^31")

    def usual_window(self, train_length: int) -> int:
        """The window where none is given."""
        return train_length

    @property
    def reach(self) -> int:
        """The window, once `resolve` has filled it in."""
        if self.window is None:
            raise ValueError("window is not set: build methods with make_method")
        return self.window

    def resolve(self, train_length: int) -> "Windowed":  # noqa: D102
        window = self.window or max(1, self.usual_window(train_length))
        return dataclasses.replace(self, window=window)


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
      q_gates: of the queries, what choices made of the layer's input, by axis.
      kv_gates: the same of the keys.
      rounded: whether weights meet values of 16 bits, so that 4e-4 of a weight makes no difference,
        and logits are such that none wants a shift.
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
    q_gates: dict[str, Numbers] = dataclasses.field(default_factory=dict)
    kv_gates: dict[str, Numbers] = dataclasses.field(default_factory=dict)
    rounded: bool = False


@dataclasses.dataclass(frozen=True)
class Piece:
    """One pair of rotations and where it counts.

    Phases are as `rotate` takes them (see `position.phase`); None leaves vectors as they are.
    `where` selects the entries this piece is for; None selects all.
    """

    q_phase: UInt32[Array, "#B #T P"] | None = None
    k_phase: UInt32[Array, "#B S P"] | None = None
    where: Bool[Array, "#B 1 T S"] | None = None


def rotate(
    x: Float[Array, "B T N H"], phase: UInt32[Array, "#B #T P"] | None
) -> Float[Array, "B T N H"]:
    """Turns the pair (p, p + P) of x by a phase, in units of 2**-32 turns; None turns nothing.

    Dimensions from 2 P on stay as they are.
    """
    if phase is None:
        return x
    angle = phase.astype(jnp.int32).astype(jnp.float32) * np.float32(2 * math.pi / 2**32)
    cos, sin = jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
    turned, still = 2 * phase.shape[-1], []
    if turned < x.shape[-1]:
        x, *still = jnp.split(x, [turned], axis=-1)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, first * sin + second * cos, *still], axis=-1
    )


class Position(FollowsInput):
    """How positions enter: rotations of q and k, and a gain and a bias on the logits."""

    @property
    def follows_length(self) -> bool:
        """Whether rotations, gain or bias depend on `Rows.q_lengths` and `kv_lengths`."""
        return False

    def turned(self, head_dim: int) -> int:
        """How many dimensions of a head turn, 2 P: the first, once they are arranged."""
        return head_dim

    def arrange(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        """Reorders dimensions so that the pair (p, p + P) turns together."""
        return x

    def amplify(
        self, x: Float[Array, "B T N H"], rows: Rows, lengths: int | Int[Array, "#B T"]
    ) -> Float[Array, "B T N H"]:
        """Arranged queries or keys with a gain on some of their dimensions.

        `lengths` are those of their documents.
        """
        del rows, lengths
        return x

    def pieces(self, rows: Rows) -> Sequence[Piece]:
        """Rotations; later pieces overrule earlier ones where they select."""
        del rows
        return [Piece()]

    @property
    def piece_chunk(self) -> int | None:
        """Tokens a chunk, where pieces are told apart by the chunks of query and key alone.

        Chunks begin with the document. A distance tells pieces apart without being said to.
        """
        return None

    def gain(self, rows: Rows) -> Array | float | None:
        """Factor on the logits, broadcastable to [B, N, T, S]; None for 1."""
        del rows
        return None

    def bias(self, rows: Rows, params: Params) -> Array | None:
        """Term added to the logits, broadcastable to [B, N, T, S]; None for 0."""
        del rows, params
        return None


class Similarity(Axis):
    """How alike a (rotated) query and key are: the dot product of what is made of each.

    The two sides may be of any size I, the same for both. Fused kernels take those of size H.
    """

    def of_queries(self, q: Float[Array, "B T N H"]) -> Float[Array, "B T N I"]:
        """The queries' side of the product."""
        return q

    def of_keys(self, k: Float[Array, "B S K H"]) -> Float[Array, "B S K I"]:
        """The keys' side of the product."""
        return k

    @property
    def largest(self) -> float:
        """What no product exceeds, whatever the vectors, before the temperature."""
        return math.inf

    @property
    def bounds(self) -> bool:
        """Whether `bounded` changes logits, as no fused kernel here does."""
        return False

    def bounded(self, logits: Float[Array, "B N T S"]) -> Float[Array, "B N T S"]:
        """What becomes of the products, temperature and gain included, before a bias is added."""
        return logits


class Temperature(FollowsInput):
    """A factor on the similarity, one a row (never on bias or mask)."""

    def __call__(
        self, rows: Rows, q: Float[Array, "B T N H"], params: Params
    ) -> Float[Array, "#B #N #T 1"]:
        """The factor; `q` is the query before rotation."""
        del q, params
        return jnp.ones_like(rows.n)

    def largest(self, keys: int, head_dim: int) -> float:
        """What no factor exceeds in rows of at most so many keys."""
        del keys, head_dim
        return math.inf

    def of_bias(self, rows: Rows) -> Float[Array, "#B #N #T 1"] | None:
        """A factor on the bias; None for 1, which it is unless an option says otherwise."""
        del rows
        return None


class Weighting(Axis):
    """Turns complete rows of logits into weights.

    Those of `lenext.attention.axes.by_key` need not be complete.
    """

    @property
    def is_softmax(self) -> bool:
        """Whether the weights are exp(logit) over its sum, as the fused kernels have them."""
        return False

    def __call__(
        self,
        logits: Float[Array, "B N T S"],
        mask: Bool[Array, "#B 1 T S"],
        rows: Rows,
        params: Params,
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
        """(first, last): rows see no more than a document's `first` first keys and the near ones.

        Near are those less than `last` away, on either side. Caches drop the others and blockwise
        rows never touch them, so a choice that sees further says None, which is any key.
        """
        return None

    def plain_window(self) -> int | None:
        """w, if rows see all keys less than w away and no others, as fused kernels have it."""
        return None

    @property
    def sees_all(self) -> bool:
        """Whether it hides no key, which it says by giving None in place of a mask."""
        nowhere = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.int32)
        return jax.eval_shape(self.__call__, nowhere, nowhere) is None
