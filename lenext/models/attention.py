"""The seam between a model and `lenext.attention`: methods as data, and what they learn."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from lenext.attention import (
    AnyMethod,
    Gates,
    HeadMethods,
    Method,
    attend,
    init_gates,
    init_params,
    make_gates,
    methods_of,
    row_statistics,
)
from lenext.attention.axes.method import SHARE
from lenext.attention.compute.attend import key_heads
from lenext.attention.compute.sided import attend_kept, sides_to_keep, together
from lenext.errors import UserError
from lenext.models.kv_cache import KVCache, LayerCache, empty_cache, joined, written
from lenext.parallel.meshes import on_shares, tensor_shares

T = TypeVar("T")


class Context(NamedTuple):
    """What attention is told of a sequence beside q, k and v.

    Attributes:
      mask: False marks padding.
      positions: of every token, in tokens; default 0..T-1. One axis where all sequences agree.
      segment_ids: documents of a pack.
      length: tokens in each document, see `lenext.attention.count_tokens`; None: T.
      probe: indices of query rows to look at.
      look: at those rows, by a function of `row_statistics`' arguments.
    """

    mask: Bool[Array, "B T"] | None = None
    positions: Int[Array, "..."] | None = None
    segment_ids: Int[Array, "B T"] | None = None
    length: int | Int[Array, "..."] | None = None
    probe: Int[Array, " R"] | None = None
    look: Callable[..., Any] = row_statistics


GATES = "_gates"
"""Behind an axis: what makes its gates of the layer's input is learned under that name."""


class Attention(nnx.Module):
    """Attention of one layer, or of a stack of layers (see `lenext.models.stack`).

    Attributes:
      methods: of a layer its one; of a stack those that differ.
      which: of each layer of a stack, the number of its method among them; None for a layer.
      learned: by method, by axis: what it learns, and under `GATES` what makes gates; in a stack of
        each layer that has it.
      own: in a run through a stack, of the layer at hand: its method's number, None where there is
        but one, and a row of each method's `learned`.
    """

    def __init__(
        self, method: AnyMethod, *, hidden_size: int, num_heads: int, num_kv_heads: int,
        head_dim: int, causal: bool,
    ):  # fmt: skip
        self.hidden_size, self.head_dim = hidden_size, head_dim
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.causal = causal
        self.implementation = "auto"
        self.methods: tuple[AnyMethod, ...] = (method,)
        self.which: tuple[int, ...] | None = None
        self.learned = nnx.data([_parameters(self._initial(method))])
        self.own: Any = nnx.data(None)

    def _initial(self, method: AnyMethod, key: Array | None = None) -> dict[str, Any]:
        params = init_params(method, self.num_heads, self.head_dim, key=key)
        of_input = init_gates(method, self.num_heads, self.hidden_size)
        if isinstance(method, HeadMethods):
            return {share: own | _of_gates(of_input[share]) for share, own in params.items()}
        return params | _of_gates(of_input)

    @property
    def by_layer(self) -> tuple[AnyMethod, ...]:
        """The method of each layer."""
        return tuple(self.methods[kind] for kind in self.which or (0,))

    def layers_of(self, kind: int) -> list[int]:
        """The layers of a stack that have method number `kind`, as `learned` has them."""
        return [layer for layer, own in enumerate(self.which or (0,)) if own == kind]

    def learned_by(self, layer: int) -> dict[str, Any]:
        """What the method of one layer learns, by axis: arrays."""
        if self.which is None:
            return _arrays(self.learned[0])
        kind = self.which[layer]
        row = self.layers_of(kind).index(layer)
        return jax.tree.map(lambda x: x[row], _arrays(self.learned[kind]))

    def own_by_layer(self) -> tuple[np.ndarray | None, list[Any]]:
        """`own` of all layers of a stack; rows of methods that a layer has not are never used."""
        parts = [_arrays(parts) for parts in self.learned]
        if len(parts) == 1:
            return None, parts
        which = np.asarray(self.which, np.int32)
        rows = [np.maximum(np.cumsum(which == kind) - 1, 0) for kind in range(len(parts))]
        spread = [
            jax.tree.map(operator.itemgetter(at), own) for own, at in zip(parts, rows, strict=True)
        ]
        return which, spread

    def set_methods(self, methods: Sequence[AnyMethod]) -> None:
        """Makes it that of a stack of as many layers, with these methods.

        What a layer's method learns on an axis that it shares with the one before stays; all else
        starts at initial values.
        """
        before = self.by_layer if self.which else ()
        if before == tuple(methods):
            return
        rows = []
        for layer, method in enumerate(methods):
            row = self._initial(method)
            if layer < len(before):
                row = _carried(row, method, self.learned_by(layer), before[layer])
            rows.append(row)
        self.methods = tuple(dict.fromkeys(methods))
        self.which = tuple(self.methods.index(method) for method in methods)
        self._set_rows(rows)

    def draw(self, key: Array) -> None:
        """Draws anew, for each layer of a stack, the parts of what it learns that papers draw."""
        drawn = (
            choice.drawn
            for of_layer in self.methods
            for method in methods_of(of_layer)
            for choice in method.axes().values()
        )
        if any(drawn):
            layers = enumerate(self.by_layer)
            self._set_rows([self._initial(own, jax.random.fold_in(key, i)) for i, own in layers])

    def _set_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Sets what the layers of a stack learn."""
        self.learned = nnx.data(
            [
                _parameters(jax.tree.map(_stacked, *[rows[i] for i in self.layers_of(kind)]))
                for kind in range(len(self.methods))
            ]
        )

    def set_learned(self, layer: int, axis: str, name: str, value: Any) -> None:
        """Sets one part of what a layer of a stack learns; `value` has as many numbers."""
        if self.which is None or isinstance(self.by_layer[layer], HeadMethods):
            raise ValueError("should be that of a stack, with a method for all heads")
        kind = self.which[layer]
        parameter = self.learned[kind][axis][name]
        value = jnp.asarray(value, parameter.dtype).reshape(parameter.shape[1:])
        parameter[...] = parameter[...].at[self.layers_of(kind).index(layer)].set(value)

    def take(self, layer: int) -> None:
        """Leaves of a stack that layer's own."""
        learned = _parameters(self.learned_by(layer))
        self.methods, self.which = (self.by_layer[layer],), None
        self.learned = nnx.data([learned])

    def by_own(self, f: Callable[[AnyMethod, Any], T]) -> T:
        """f(method, what it learns) of the layer at hand.

        Of a stack whose methods differ one of several branches runs, so that every one is compiled
        once, whatever the pattern and the depth.
        """
        if self.own is None:
            if self.which is not None:
                raise ValueError("a stack: its layers are to be run by run_layers, or taken apart")
            return f(self.methods[0], self.learned_by(0))
        kind, rows = self.own
        if kind is None:
            return f(self.methods[0], rows[0])
        branches = [functools.partial(f, *own) for own in zip(self.methods, rows, strict=True)]
        return jax.lax.switch(kind, branches)

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K V"],
        x: Float[Array, "B T D"],
        context: Context,
    ) -> tuple[Float[Array, "B T N V"], Any]:
        """Attention, and what a look at the probed rows gives; None if there are none.

        x is the layer's input, of which q, k and v were made.
        """
        return self.by_own(lambda method, learned: self._seen(method, learned, q, k, v, x, context))

    def _gates(self, method: AnyMethod, learned: Any, x: Array, **where: Any) -> Gates:
        params = _parts(learned, of_gates=True)
        return make_gates(method, params, x, num_heads=self.num_heads, **where)

    def _seen(
        self, method: AnyMethod, learned: Any, q: Array, k: Array, v: Array, x: Array,
        context: Context,
    ) -> tuple[Array, Any]:  # fmt: skip
        if isinstance(method, HeadMethods):
            _check_split(method, self.num_heads)
        params = _parts(learned, of_gates=False)
        gates = self._gates(method, learned, x, mask=context.mask)
        out = self._attend(method, params, q, k, v, gates, context)
        if context.probe is None:
            return out, None
        at, tokens = context.probe, q.shape[1]
        positions = context.positions
        if positions is None:
            positions = jnp.arange(tokens, dtype=jnp.int32)
        segment_ids = None if context.segment_ids is None else context.segment_ids[:, at]
        gates = gates._replace(queries=jax.tree.map(lambda x: x[:, at], gates.queries))
        seen = context.look(
            q[:, at], k, method, causal=self.causal, params=params, gates=gates,
            q_positions=positions[..., at], kv_positions=positions,
            q_segment_ids=segment_ids, kv_segment_ids=context.segment_ids, kv_mask=context.mask,
            length=tokens if context.length is None else context.length,
        )  # fmt: skip
        return out, seen

    def _attend(
        self, method: AnyMethod, params: Any, q: Array, k: Array, v: Array, gates: Gates,
        context: Context,
    ) -> Array:  # fmt: skip
        """Attention of all queries to all keys; on a mesh, of each device's queries.

        Where tokens are split, keys and values are gathered, as complete rows want them whatever
        the method. (A ring of partial rows, arXiv 2310.01889, would move as many bytes and serve
        some methods only.)
        """
        tokens = q.shape[1]
        length = tokens if context.length is None else context.length
        places = {"positions": context.positions, "segment_ids": context.segment_ids}
        places = {name: x for name, x in places.items() if x is not None}
        if "positions" in places:  # one row of them where all sequences agree
            places["positions"] = places["positions"].reshape(-1, tokens)
        if not isinstance(length, int) and method.follows_length:
            by_row = length if length.ndim == 2 else length.reshape(-1, 1)
            lengths = {"length": jnp.broadcast_to(by_row, (by_row.shape[0], tokens))}
        else:
            lengths = {}
        mask = {} if context.mask is None else {"mask": context.mask}

        def attended(rows, params, gather):
            q, k, v, gates, places, mask, lengths = rows
            some = q.shape[1]
            k, v, kv_gates, kv_places, lengths = gather((k, v, gates.keys, places | mask, lengths))
            if some < tokens and "positions" not in places:
                first = jax.lax.axis_index("sequence") * some
                places = places | {"positions": first + jnp.arange(some, dtype=jnp.int32)}
            return attend(
                q, k, v, method, causal=self.causal, params=params,
                gates=gates._replace(keys=kv_gates), implementation=self.implementation,
                **({"length": length} | lengths),
                **{f"q_{name}": x for name, x in places.items()},
                **{f"kv_{name}": x for name, x in kv_places.items()},
            )  # fmt: skip

        return on_shares(attended, (q, k, v, gates, places, mask, lengths), params)

    def empty_cache(self, batch: int, capacity: int, dtype: Any) -> LayerCache:
        """A layer's cache for sequences of up to `capacity` tokens."""
        return empty_cache(
            self.methods[0], batch, capacity, num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads, head_dim=self.head_dim, dtype=dtype,
        )  # fmt: skip

    def step(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K V"],
        x: Float[Array, "B T D"],
        positions: Int[Array, " T"],
        length: Int[Array, ""] | int,
        cache: LayerCache,
    ) -> tuple[Float[Array, "B T N V"], LayerCache]:
        """A layer's attention of the next T tokens to the cache and each other; and the cache then.

        `length` is that of the text, in tokens, for methods that follow it.
        """
        method, learned = self.methods[0], self.learned_by(0)
        if not isinstance(method, HeadMethods):
            out, after = self._step(method, learned, q, k, v, x, positions, length, cache[0])
            return out, (after,)
        outs, caches = [], []
        shares = method.of_heads(self.num_heads).items()
        for (share, (own, span)), kept in zip(shares, cache, strict=True):
            of_keys = jnp.asarray(key_heads(span, self.num_heads // self.num_kv_heads))
            out, after = self._step(
                own, learned[share], q[:, :, span], k[:, :, of_keys], v[:, :, of_keys], x,
                positions, length, kept,
            )  # fmt: skip
            outs.append(out)
            caches.append(after)
        return jnp.concatenate(outs, axis=2), tuple(caches)

    def _step(
        self,
        method: Method,
        learned: Any,
        q: Array,
        k: Array,
        v: Array,
        x: Array,
        positions: Array,
        length: Array | int,
        cache: KVCache,
    ) -> tuple[Array, KVCache]:
        """`step` under one method, of the heads that it has."""
        batch, num_heads = q.shape[0], q.shape[2]
        latest = jnp.argmax(cache.positions)
        before = jax.tree.map(lambda x: x[:, latest].reshape(batch, 1, num_heads), cache.gates)
        gates = make_gates(
            method, _parts(learned, of_gates=True), x, num_heads=num_heads, before=before
        )
        of_keys = jax.tree.map(lambda x: together(x.swapaxes(1, 2)), gates.keys)
        sides = sides_to_keep(k, method, positions, num_heads=num_heads)
        made = KVCache(sides, together(v.swapaxes(1, 2)), positions, of_keys)
        new = jax.tree.map(lambda x, kept: x.astype(kept.dtype), made, cache)
        after = written(cache, new, method)
        # What one token takes the place of, that token cannot see; several see what the last of
        # them does not.
        all_stays = positions.size == 1 or method.visibility.keeps() is None
        seen = after if all_stays else joined(cache, new)
        out = attend_kept(
            q, seen.k, seen.v, method, q_positions=positions, kv_positions=seen.positions,
            q_gates=gates.queries, kv_gates=seen.gates, length=length,
            params=_parts(learned, of_gates=False), implementation=self.implementation,
        )  # fmt: skip
        return out, after


def _check_split(method: HeadMethods, num_heads: int) -> None:
    """A UserError unless each share of the heads can be split over devices as all of them are."""
    sizes = [span.stop - span.start for _, span in method.of_heads(num_heads).values()]
    if any(size % tensor_shares() for size in sizes):
        raise UserError(
            f"method {method.name!r}: config.mesh.tensor={tensor_shares()} should divide each "
            f"share of the heads: {', '.join(map(str, sizes))}"
        )


def _of_gates(params: Any) -> dict[str, Any]:
    return {axis + GATES: own for axis, own in params.items()}


def _parts(learned: dict[str, Any], *, of_gates: bool) -> dict[str, Any]:
    """What a layer learns, by axis: what makes gates, or what attention itself takes."""
    found = {}
    for name, own in learned.items():
        if name.startswith(SHARE):
            found[name] = _parts(own, of_gates=of_gates)
        elif name.endswith(GATES) == of_gates:
            found[name.removesuffix(GATES)] = own
    return found


def _carried(row: dict[str, Any], method: AnyMethod, kept: Any, was: AnyMethod) -> dict[str, Any]:
    """What a method learns: initial values, or what was kept on an axis that stays as it was."""
    if isinstance(method, HeadMethods):
        if not isinstance(was, HeadMethods) or was.shares != method.shares:
            return row
        return {
            share: _carried(row[share], own, kept[share], before)
            for share, own, before in zip(row, method.methods, was.methods, strict=True)
        }
    if isinstance(was, HeadMethods):
        return row
    axes, before = method.axes(), was.axes()
    axis_of = {name: name.removesuffix(GATES) for name in row}
    same = [name for name, axis in axis_of.items() if before[axis] == axes[axis]]
    return row | {name: kept[name] for name in same}


def _parameters(parts: Any) -> Any:
    return jax.tree.map(nnx.Param, parts)


def _arrays(parts: Any) -> Any:
    return jax.tree.map(lambda p: p[...], parts, is_leaf=lambda x: isinstance(x, nnx.Param))


def _stacked(*rows: Any) -> Array:
    """Rows of what layers learn, which is little, from wherever they lie."""
    if any(isinstance(x, Tracer) for x in rows):
        return jnp.stack(rows)
    return jnp.asarray(np.stack([np.asarray(x) for x in rows]))
