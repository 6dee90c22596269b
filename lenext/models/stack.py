"""Layers of one kind, stacked: each of their parameters is one array [layers, ...].

So weights stand in memory once: a scan goes through them as they are, a gradient and an optimiser
give and take them so, and depth costs no compilation. A stack is a layer module whose parameters
have one more axis, in front. Outside the models parameters go by public names, such as
"layers.3.mlp.up_proj.kernel", whatever way they are stored.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lenext.attention import AnyMethod
from lenext.models.attention import Attention
from lenext.parallel.meshes import split_tokens

AttentionCall: TypeAlias = Callable[[Attention, Array, Array, Array, Array], tuple[Array, Any]]
"""(attention, q, k, v, the layer's input) to outputs, and statistics, a cache or whatever."""

SHARED = nnx.Not(nnx.PathContains("learned"))
"""All parameters but those that methods learn."""


WORDS = jnp.uint16
"""Type in which a stack may hold 16-bit parameters, see `in_words`."""


class Layer(Protocol):
    """What models stack."""

    @property
    def attention(self) -> Attention:
        """The seam, where methods are swapped."""
        ...

    def __call__(
        self, x: Float[Array, "B T D"], call: AttentionCall, *, dropout_key: Array | None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """x, one layer on; and what else `call` gives."""
        ...


def stack(make: Callable[[AnyMethod], Any], methods: Sequence[AnyMethod]) -> Any:
    """A stack of the layers that `make` gives for each of the methods, in their order.

    While it is filled, one layer is held beside it.
    """
    stacked = make(methods[0])
    layer = stacked
    weights = jax.tree.map(
        lambda x: jnp.zeros((len(methods), *x.shape), x.dtype), nnx.state(layer, SHARED)
    )
    for i, method in enumerate(methods):
        layer = make(method) if i else layer
        weights = _with_row(weights, nnx.state(layer, SHARED), i)
    nnx.update(stacked, weights)
    stacked.attention.set_methods(methods)
    return stacked


@functools.partial(jax.jit, donate_argnums=0)
def _with_row(stacked: Any, row: Any, i: Int[Array, ""] | int) -> Any:
    return jax.tree.map(lambda x, own: x.at[i].set(own), stacked, row)


def in_words(model: Any) -> Any:
    """The model with the 16-bit parameters of its stack as unsigned integers of the same bits.

    XLA's CPU backend would turn a whole stack to float32 before a scan takes a layer of it, which
    costs more memory than 16 bits save. Of integers it takes the layer, whose bits are read as
    numbers then. On other backends a model stays as it is. The model's own arrays are given up, one
    after the other.
    """
    if jax.default_backend() != "cpu":
        return model
    graphdef, shared, rest = nnx.split(model.layers, SHARED, ...)

    def turned(x: Array) -> Array:
        if x.dtype != jnp.bfloat16:
            return x
        words = jax.block_until_ready(_bits(x))
        x.delete()
        return words

    held = nnx.merge(*nnx.split(model))
    held.layers = nnx.merge(graphdef, jax.tree.map(turned, shared), rest)
    return held


@jax.jit
def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, WORDS)


def _numbers(weights: Any) -> Any:
    """Parameters of a layer, or of several, that may be words."""
    return jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == WORDS else x, weights
    )


def take_apart(model: Any, *, free: bool = False) -> Any:
    """The model with its layers by themselves, in a list: as decoding wants them.

    Args:
      model: with a stack.
      free: give up the model's own layers, one parameter after the other, so that there is no
        second copy of them; no model that shares them can be used afterwards.
    """
    graphdef, shared, rest = nnx.split(model.layers, SHARED, ...)
    depth = len(model.layers.attention.by_layer)
    rows: list[list[Any]] = [[] for _ in range(depth)]
    leaves, structure = jax.tree.flatten(shared)
    for stacked in leaves:
        for own, row in zip(rows, _rows(stacked), strict=True):
            own.append(row)
        if free:
            stacked.delete()
    layers = []
    for i, own in enumerate(rows):
        layer = nnx.merge(graphdef, jax.tree.unflatten(structure, own), rest)
        layer.attention.take(i)
        layers.append(layer)
    others = nnx.merge(*nnx.split(model))
    others.layers = nnx.List(layers)
    return others


@jax.jit
def _rows(stacked: Array) -> list[Array]:
    return list(_numbers(stacked))


def run_layers(
    layers: Any,
    x: Float[Array, "B T D"],
    keys: Array | None,
    apply: Callable[[Any, Any, Any], tuple[Array, Any]],
    *,
    remat: bool = False,
    unroll: bool = False,
) -> tuple[Float[Array, "B T D"], Any]:
    """Runs x through a stack by a scan, so that depth costs no compilation and no weight is copied.

    One layer is compiled, and each method that differs (see `Attention`).

    Args:
      layers: a stack; or layers by themselves in a list, of which each is compiled.
      x: what enters the first.
      keys: one random key a layer, or None.
      apply: (layer, x, key) to the next x and figures to collect (a pytree, or None).
      remat: the backward pass computes each layer anew from what entered it.
      unroll: no loop is left of the scan, so that a backward pass need not gather what all layers
        keep for it; compilation then grows with the depth.

    Returns:
      What leaves the last layer, and the figures with the layers as a new first axis.
    """
    if isinstance(layers, nnx.List):
        figures = []
        for i, layer in enumerate(layers):
            x, seen = apply(layer, split_tokens(x), None if keys is None else keys[i])
            figures.append(seen)
        return x, jax.tree.map(lambda *rows: jnp.stack(rows), *figures)
    graphdef, weights, rest = nnx.split(layers, SHARED, ...)

    def body(x, each):
        weights, own, key = each
        layer = nnx.merge(graphdef, _numbers(weights), rest)
        layer.attention.own = nnx.data(own)
        return apply(layer, split_tokens(x), key)

    # A scan keeps the forward pass from being merged with its repetition by itself.
    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    each = weights, layers.attention.own_by_layer(), keys
    return jax.lax.scan(body, x, each, unroll=unroll or 1)


class Place(NamedTuple):
    """Where a parameter is stored.

    Attributes:
      path: of the array in the model's state.
      index: of the parameter in the array: a row of what is stacked, or all of it (an Ellipsis).
    """

    path: tuple[Any, ...]
    index: Any

    def shape(self, array: Any) -> tuple[int, ...]:
        """The parameter's shape, of the array's or its shape's."""
        return array.shape if self.index is ... else array.shape[1:]


def places_of(model: Any) -> dict[str, Place]:
    """Where each parameter of a model is stored, by public name."""
    found: dict[str, Place] = {}
    stacked = not isinstance(model.layers, nnx.List)
    for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        kind, names = None, [str(part) for part in path]
        if "learned" in path:  # a method's number follows, which is the storage's own affair
            at = path.index("learned") + 1
            kind = path[at]
            del names[at]
        if path[0] != "layers" or not stacked:
            found[".".join(names)] = Place(path, ...)
            continue
        attention = model.layers.attention
        rows = range(len(attention.by_layer)) if kind is None else attention.layers_of(kind)
        for row, layer in enumerate(rows):
            found[".".join(["layers", str(layer), *names[1:]])] = Place(path, row)
    return found


def named_parameters(model: Any) -> dict[str, Any]:
    """A model's parameters by public names, on the host; on a CPU they are not copied."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    arrays = {path: np.asarray(parameter[...]) for path, parameter in state}
    arrays = {path: x.view(jnp.bfloat16) if x.dtype == WORDS else x for path, x in arrays.items()}
    return {name: arrays[path][index] for name, (path, index) in places_of(model).items()}
