"""A step of a kernel: what it reads, and what the method makes of it.

Arrays of a step have leading axes of 1 for batch and head, as the axes of a method want them.
"""

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lenext.attention.axes.axis import Rows
from lenext.attention.axes.by_key import TwoStage
from lenext.attention.compute.kernel_steps import Kind
from lenext.attention.compute.places import Places, located, rows_at
from lenext.attention.compute.plan import Plan
from lenext.attention.compute.trimmed import Trimmed, cut_by_row

LAST = "last "
"""How the names of rows' numbers that the last values are made with begin."""


class Traced:
    """What the axes compute of a tile, traced by itself.

    So that a kernel holds what they return, and nothing that only the way there wanted: a position
    says where each piece counts together with the phases, which are in the sides already.
    """

    def __init__(self, plan: Plan, pieces: int):
        self.plan, self.pieces = plan, pieces
        tile, row = (1, 1, plan.query_block, plan.key_block), (1, 1, plan.query_block, 1)
        of_tile, of_row = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (tile, row))
        number = jax.ShapeDtypeStruct((), jnp.int32)
        seen = jax.ShapeDtypeStruct(tile, jnp.bool_)
        self.wheres = Trimmed(self._wheres, number, number)
        self.values = {
            masked: Trimmed(self._values, of_tile, seen if masked else None, of_row, of_row)
            for masked in (False, True)
        }
        if isinstance(plan.weighting, TwoStage):
            _, self.last = last_values(plan, tile, row)

    def _rows(self, query, key, n) -> Rows:
        """The tile's, from its first query and key on."""
        plan = self.plan
        of_queries, of_keys = (
            first + jax.lax.broadcasted_iota(jnp.int32, (1, size), 1)
            for first, size in ((query, plan.query_block), (key, plan.key_block))
        )
        return Rows(
            n=n, q_positions=of_queries, kv_positions=of_keys, delta=self.delta(query, key),
            start=jnp.zeros((1, 1, plan.query_block, 1), jnp.int32), kv_ordinals=of_keys,
            causal=plan.causal, train_length=plan.method.train_length, q_lengths=plan.length,
            kv_lengths=plan.length, num_heads=plan.num_heads, head_dim=plan.head_dim,
            rounded=plan.rounded,
        )  # fmt: skip

    def delta(self, query, key) -> Int[Array, "1 1 T S"]:
        """Query positions less key positions."""
        shape = (1, 1, self.plan.query_block, self.plan.key_block)
        down, along = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (2, 3))
        return (query - key) + down - along

    def _wheres(self, query, key) -> list[Array | None]:
        rows = self._rows(query, key, jnp.ones((1, 1, self.plan.query_block, 1), jnp.float32))
        _, *later = self.plan.method.position.pieces(rows)  # the first is of all others
        return [piece.where for piece in later]

    def _values(self, logits, mask, shift, n) -> Array:
        zero = jnp.zeros((), jnp.int32)
        rows = self._rows(zero, zero, n)
        return self.plan.weighting.visible_values(logits, mask, shift, rows, {})


def last_values(plan: Plan, tile: tuple[int, ...], row: tuple[int, ...]) -> tuple[Any, Any]:
    """Those of a weighting of two stages, of its first ones, [B, N, T, S], cut by row.

    The numbers are made of a row's largest weight and of n.
    """
    weighting: Any = plan.weighting

    def function(first, peak, n):
        return weighting.last_values(first, peak, rows_of(plan, n))

    of_tile, of_row = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (tile, row))
    n = jax.ShapeDtypeStruct((1, 1, *row[2:]), jnp.int32)
    return cut_by_row(function, of_tile, of_row, n)


def rows_of(plan: Plan, n: Array) -> Rows:
    """For what follows of a row its number of keys alone."""
    queries, keys = (jnp.zeros((1, size), jnp.int32) for size in (n.shape[2], 1))
    rows = rows_at(
        plan.method, located(Places(queries, keys)), n, causal=plan.causal, length=plan.length,
        num_heads=plan.num_heads, head_dim=plan.head_dim,
    )  # fmt: skip
    return dataclasses.replace(rows, rounded=plan.rounded)


class Step(abc.ABC):
    """A step of a kernel: what it reads, and what the method makes of it."""

    def __init__(self, kernel: Any, traced: Traced, kind: Kind, block: Array, tile: Array):
        self.traced, self.kind, self.plan = traced, kind, traced.plan
        self.names, self.forms = kernel.names, kernel.forms
        self.query = self.plan.keys - self.plan.queries + block * self.plan.query_block
        self.key = tile * self.plan.key_block
        self.pieces = range(traced.pieces) if kind.piece is None else [kind.piece]

    @property
    @abc.abstractmethod
    def queries(self) -> list[Float[Array, "T _"]]:
        """The block of each array of queries."""

    @property
    @abc.abstractmethod
    def keys(self) -> list[Float[Array, "S _"]]:
        """The tile of each array of keys; of such in two words the first."""

    @abc.abstractmethod
    def column(self, number: int) -> Float[Array, "T 1"]:
        """One of the rows' numbers."""

    @abc.abstractmethod
    def product_of(self, piece: int) -> Float[Array, "T S"]:
        """Of the queries and keys of a piece, with both words of the latter."""

    def row(self, name: str) -> Float[Array, "1 1 T 1"]:
        """One of the rows' numbers."""
        return self.column(self.names.index(name))[None, None]

    def shift(self) -> Float[Array, "1 1 T 1"]:
        """The rows' shift, of which nothing is read where there is none."""
        if self.plan.shifted:
            return self.row("shift")
        return jnp.zeros((1, 1, self.plan.query_block, 1), jnp.float32)

    def d_values(self) -> Float[Array, "1 1 T S"]:
        """Gradients of the (last) values."""
        d_values = product(self.queries[-1], self.keys[-1], 1, 1)[None, None]
        weighting = self.plan.weighting
        if not (weighting.normalised or isinstance(weighting, TwoStage)):
            return d_values
        return (d_values - self.row("mean")) * self.row("inverse")

    def products(self) -> list[Float[Array, "1 1 T S"]]:
        """Of the pieces that count here."""
        return [self.product_of(piece)[None, None] for piece in self.pieces]

    def logits_of(self, products: list[Array]) -> Float[Array, "1 1 T S"]:
        """Each entry of the piece that it is of."""
        value, *others = products
        if others:
            for where, other in zip(self.traced.wheres(self.query, self.key), others, strict=True):
                value = jnp.where(where, other, value)
        return self.plan.method.similarity.bounded(value)

    def mask(self) -> Array | None:
        """Which entries are visible; None for all."""
        if not self.kind.masked:
            return None
        delta = self.traced.delta(self.query, self.key)
        ordinal = self.key + jax.lax.broadcasted_iota(jnp.int32, delta.shape, 3)
        masks = [self.plan.method.visibility(delta, ordinal)]
        if self.plan.causal:  # by row and column, which takes an operation less than `delta`
            row, column = (
                jax.lax.broadcasted_iota(jnp.int32, shape, axis)
                for shape, axis in (((*delta.shape[:3], 1), 2), ((1, 1, 1, delta.shape[3]), 3))
            )
            masks.append(self.query + row >= self.key + column)
        if self.plan.keys % self.plan.key_block:
            masks.append(ordinal < self.plan.keys)
        given = [mask for mask in masks if mask is not None]
        return functools.reduce(jnp.logical_and, given)

    def values(self, logits, mask, shift) -> Float[Array, "1 1 T S"]:
        """Of the weighting, hidden ones 0."""
        if mask is None or self.plan.shifted:
            return self.traced.values[mask is not None](logits, mask, shift, lambda: self.row("n"))
        # Where none wants a shift, none overflows, hidden ones included.
        return jnp.where(mask, self.values(logits, None, shift), 0.0)

    def last(self, logits, mask, scale) -> Float[Array, "1 1 T S"]:
        """Of the weighting's second stage, hidden ones 0."""
        first = self.values(logits, mask if self.plan.shifted else None, self.shift())
        numbers = [self.row(name) for name in self.names if name.startswith(LAST)]
        last = self.traced.last(first * scale, *numbers)
        return last if mask is None else jnp.where(mask, last, 0.0)


def product(x: Array, y: Array, of_x: int, of_y: int) -> Float[Array, "M N"]:
    """Contracted over an axis of each, in float32."""
    exact = None if x.dtype.itemsize < 4 else jax.lax.Precision.HIGHEST
    dimensions = (((of_x,), (of_y,)), ((), ()))
    return jax.lax.dot_general(
        x, y, dimensions, precision=exact, preferred_element_type=jnp.float32
    )
