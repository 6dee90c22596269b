"""A method: one choice on each of five independent axes, or several methods by the head."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
from jaxtyping import Array

from lenext.attention.axes.axis import (
    Axis,
    FollowsInput,
    Params,
    Position,
    Similarity,
    Temperature,
    Visibility,
    Weighting,
)

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

    @property
    def causal_only(self) -> bool:
        """Whether it is defined under causality alone."""
        return any(choice.causal_only for choice in self.axes().values())

    @property
    def gated(self) -> dict[str, FollowsInput]:
        """The choices that follow the layer's input, by axis."""
        choices = {"position": self.position, "temperature": self.temperature}
        return {axis: choice for axis, choice in choices.items() if choice.gated}

    def axes(self) -> dict[str, Axis]:
        """The five choices by axis name."""
        return {axis: getattr(self, axis) for axis in AXES}


@dataclasses.dataclass(frozen=True)
class HeadMethods:
    """Methods of a layer's heads: contiguous shares, the first named first.

    Each is computed as if its heads were all there are.

    Attributes:
      methods: of the shares, of one training length.
      shares: in what proportion heads go to them.
      name: as it was asked for; does not count for equality.
    """

    methods: tuple[Method, ...]
    shares: tuple[int, ...]
    name: str = dataclasses.field(default="", compare=False)

    @property
    def train_length(self) -> int:
        """L."""
        return self.methods[0].train_length

    @property
    def follows_length(self) -> bool:
        """Whether any of them does."""
        return any(method.follows_length for method in self.methods)

    @property
    def causal_only(self) -> bool:
        """Whether any of them is defined under causality alone."""
        return any(method.causal_only for method in self.methods)

    def of_heads(self, num_heads: int) -> dict[str, tuple[Method, slice]]:
        """Each method with its heads, by the name that its learned parts go under.

        Raises:
          ValueError: heads do not go into the shares, naming some that would fit.
        """
        whole = sum(self.shares)
        if num_heads % whole:
            raise ValueError(
                f"method {self.name!r}: {num_heads} heads cannot be shared as "
                f"{_listed(self.shares)}: should be a multiple of {whole}{self._fitting(num_heads)}"
            )
        sizes = [share * num_heads // whole for share in self.shares]
        stops = itertools.accumulate(sizes)
        return {
            f"{SHARE}{number}": (method, slice(stop - size, stop))
            for number, (method, size, stop) in enumerate(
                zip(self.methods, sizes, stops, strict=True)
            )
        }

    def _fitting(self, num_heads: int) -> str:
        """Shares near these that all heads go into, in words; "" where there are too few heads."""
        if num_heads < len(self.shares):
            return ""
        sizes = [1] * len(self.shares)
        for _ in range(num_heads - len(sizes)):  # to who is furthest below what it asks for
            at = max(range(len(sizes)), key=lambda i: self.shares[i] / sizes[i])
            sizes[at] += 1
        return f", or shares such as {_listed(sizes)}"


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


SHARE = "heads"
"""Before a share's number: the name that its learned parts go under."""

AnyMethod = Method | HeadMethods


def methods_of(method: AnyMethod) -> tuple[Method, ...]:
    """A method alone, or those of the heads."""
    return method.methods if isinstance(method, HeadMethods) else (method,)


def init_params(
    method: AnyMethod, num_heads: int, head_dim: int, *, key: Array | None = None
) -> Params:
    """Initial values of a method's learned parts, by axis; {} where nothing is learned.

    Of methods of heads, those of each share, under its name.

    Args:
      method: from `make_method`.
      num_heads: N, query heads.
      head_dim: H, dimensions a head.
      key: a random key, for parts that their papers draw, such as KERPLE's; None for constants.
    """
    if isinstance(method, HeadMethods):
        shares = method.of_heads(num_heads).items()
        keys = [None] * len(shares) if key is None else jax.random.split(key, len(shares))
        return {
            share: init_params(own, span.stop - span.start, head_dim, key=own_key)
            for (share, (own, span)), own_key in zip(shares, keys, strict=True)
        }
    params = {}
    for axis, choice in method.axes().items():
        values = choice.init_params(num_heads, head_dim, method.train_length)
        if values:
            params[axis] = values if key is None else choice.draw_params(values, key)
    return params


def unsuited_axes(method: AnyMethod, trained: AnyMethod) -> list[str]:
    """Axes in which `method` wants weights trained for it and `trained` was something else.

    Empty for a training-free change, such as another temperature law or a clamped distance.
    Learned parts count: swapped in, they stand at their initial values.
    """
    ours, theirs = methods_of(method), methods_of(trained)
    alike = getattr(method, "shares", None) == getattr(trained, "shares", None)
    pairs = zip(ours, theirs, strict=True) if alike else itertools.product(ours, theirs)
    wanted = [(ours.axes(), theirs.axes()) for ours, theirs in pairs]
    return [
        axis
        for axis in AXES
        if any(ours[axis].kind not in ("any", theirs[axis].kind) for ours, theirs in wanted)
    ]
