"""Visibility: which keys a row sees, before causality, padding and documents have their say."""

import dataclasses

import jax.numpy as jnp

from lenext.attention.axes.method import Visibility, Windowed, option


@dataclasses.dataclass(frozen=True)
class Full(Visibility):
    """Every key."""


@dataclasses.dataclass(frozen=True)
class Window(Visibility, Windowed):
    """Keys at a distance below `window` (default L), on both sides where not causal."""

    def __call__(self, delta, ordinal):  # noqa: D102
        del ordinal
        return jnp.abs(delta) < self.reach

    def keeps(self):  # noqa: D102
        return 0, self.reach

    def plain_window(self):  # noqa: D102
        return self.reach if type(self) is Window else None  # one derived from it may see less


@dataclasses.dataclass(frozen=True)
class SinkWindow(Visibility, Windowed):
    """The window and a document's first `sinks` keys: the Lambda-shaped mask (arXiv 2308.16137)."""

    sinks: int = option(4, int, at_least=0)

    def __call__(self, delta, ordinal):  # noqa: D102
        return (jnp.abs(delta) < self.reach) | (ordinal < self.sinks)

    def keeps(self):  # noqa: D102
        return self.sinks, self.reach
