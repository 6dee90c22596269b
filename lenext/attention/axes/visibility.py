"""Visibility: which keys a row sees, before causality, padding and documents have their say."""

import dataclasses

import jax.numpy as jnp

from lenext.attention.axes.axis import Visibility, Windowed, option


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


@dataclasses.dataclass(frozen=True)
class CacheWindow(SinkWindow):
    """The same, of L keys in all by default: what StreamingLLM's cache holds (arXiv 2309.17453)."""

    def usual_window(self, train_length):  # noqa: D102
        return train_length - self.sinks


@dataclasses.dataclass(frozen=True)
class Chunked(Visibility):
    """Keys of the query's own chunk of `chunk` tokens of its document (default L), as in Llama 4.

    floor(i / c) = floor(j / c); i and j count from the document's start.
    """

    chunk: int | None = option(None, int, at_least=1)

    def resolve(self, train_length):  # noqa: D102
        return dataclasses.replace(self, chunk=self.chunk or train_length)

    @property
    def size(self) -> int:
        """The chunk, once `resolve` has filled it in."""
        if self.chunk is None:
            raise ValueError("chunk is not set: build methods with make_method")
        return self.chunk

    def __call__(self, delta, ordinal):  # noqa: D102
        return (ordinal + delta) // self.size == ordinal // self.size

    def keeps(self):  # noqa: D102
        return 0, self.size
