"""Where parameters, optimiser state and batches lie: a mesh of devices.

A mesh has four axes. Rows of a batch are spread over "data" and "fsdp" together; "fsdp" splits
parameters and optimiser state as well, which are gathered where they are used (ZeRO, arXiv
1910.02054); "tensor" splits the products themselves, by columns and then by rows (arXiv
1909.08053); "sequence" splits the tokens of each row, whose queries then meet the keys of all
(see `lenext.models.attention.Attention`). XLA puts in the communication.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lenext.config import Config
from lenext.errors import UserError

MESH_AXES = ("data", "fsdp", "sequence", "tensor")
ROWS = ("data", "fsdp")
"""Axes over which the rows of a batch are spread."""

COLUMNS, LINES, WHOLE = P("fsdp", "tensor"), P("tensor", "fsdp"), P()
"""How a parameter's last axes are split, which models say where they make it ("split" of an
`nnx.Param`). What says nothing lies whole on every device: gains, biases, and what methods learn.

By columns are split the maps that open a product, by lines those that close it, and embeddings."""


def splits_of(model: nnx.Module) -> dict[str, P]:
    """How parameters are split, by their paths in the model's state, such as "norm.scale"."""
    return metadata_of(model, "split", WHOLE)


def metadata_of(model: nnx.Module, name: str, default: Any) -> dict[str, Any]:
    """What parameters say of themselves, by their paths in the model's state."""
    return {
        ".".join(map(str, path)): parameter.get_metadata().get(name, default)
        for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def make_mesh(config: Config) -> Mesh:
    """All devices of all processes, in the sizes of the section `mesh`.

    Raises:
      UserError: for sizes whose product is not the number of devices.
    """
    sizes = {axis: int(config[axis]) for axis in MESH_AXES}
    said = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    count = jax.device_count()
    free = [axis for axis, size in sizes.items() if size == 0]
    if any(size < 0 for size in sizes.values()) or len(free) > 1:
        raise UserError(f"config.mesh: {said}: should be at least 1, and 0 for one axis at most")
    taken = math.prod(size for size in sizes.values() if size)
    if free and count % taken == 0:
        sizes[free[0]] = count // taken
    if math.prod(sizes.values()) != count:
        should = f"a divisor of the {count} devices" if free else f"{count}, the devices there are"
        raise UserError(f"config.mesh: {said}: the product is {taken} and should be {should}")
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def traced_on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Inside a function to be compiled: what is traced here may say how it is split over `mesh`.

    Not around what runs eagerly, of which every process would have to do the same.
    """
    if mesh is None or mesh.size == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def tensor_shares() -> int:
    """Parts into which what is being traced splits heads."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("tensor", 1)


def sequence_shares(length: int) -> int:
    """Parts into which what is being traced splits `length` tokens: 1 where it cannot evenly."""
    shares = dict(jax.sharding.get_abstract_mesh().shape).get("sequence", 1)
    return shares if length % shares == 0 else 1


def on_shares(f: Callable[[Any, Any, Callable[[Any], Any]], Any], rows: Any, whole: Any) -> Any:
    """f(rows, whole, gather), in what is being traced, by each device on its share of the rows.

    So loops inside stay on the device: XLA, left to itself, would exchange in every turn. The axis
    "tensor" stays XLA's, unless there is nothing to split over it, as fused kernels want it.

    Args:
      f: gives arrays [b, t, …]; `gather` gives it all the tokens of an array of its rows.
      rows: arrays [B, T, …], or [1, T, …] where all rows are alike. The first has B and T.
      whole: arrays that every device needs whole.

    Returns:
      What f gives, with B and T.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # XLA fails at an exchange among one device of several ("Cross-partition allreduce must be …").
    if mesh.empty or all(mesh.shape[axis] == 1 for axis in MESH_AXES if axis != "tensor"):
        return f(rows, whole, lambda tree: tree)
    batch, length = jax.tree.leaves(rows)[0].shape[:2]
    even = batch % math.prod(mesh.shape[axis] for axis in ROWS) == 0
    tokens = "sequence" if sequence_shares(length) > 1 else None

    def split(x: jax.Array) -> P:
        return P(ROWS if even and x.shape[0] == batch else None, tokens)

    def gather(tree: Any) -> Any:
        if tokens is None:
            return tree
        return jax.tree.map(lambda x: jax.lax.all_gather(x, tokens, axis=1, tiled=True), tree)

    # Unchecked: loops in f may start from constants, which are alike on all devices.
    return jax.shard_map(
        lambda rows, whole: f(rows, whole, gather),
        in_specs=(jax.tree.map(split, rows), P()),
        out_specs=P(ROWS if even else None, tokens),
        axis_names={axis for axis in MESH_AXES if axis != "tensor" or mesh.shape[axis] == 1},
        check_vma=False,
    )(rows, whole)


def split_tokens(x: jax.Array) -> jax.Array:
    """x [B, T, …], in what is being traced: B split over the axes of rows, T over sequence."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _fitting((ROWS, "sequence"), x.shape, mesh))


def whole(tree: Any) -> Any:
    """The tree, in what is being traced, whole on every device."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, P())


def row_shares(mesh: Mesh | AbstractMesh) -> int:
    """Parts into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def check_batch(data: Config, mesh: Mesh | AbstractMesh, accumulate: int = 1) -> None:
    """Checks that a batch, and each of its `accumulate` micro-batches, falls evenly onto the mesh.

    Args:
      data: section of the config.
      mesh: of devices.
      accumulate: micro-batches.

    Raises:
      UserError: where it does not.
    """
    shares, splits = row_shares(mesh), mesh.shape["sequence"]
    if data.batch_size % (accumulate * shares):
        parts = f"config.training.accumulate={accumulate} times " if accumulate > 1 else ""
        raise UserError(
            f"config.data.batch_size={data.batch_size}: should be a multiple of {parts}"
            f"the {shares} devices"
        )
    if data.train_length % splits:
        raise UserError(
            f"config.data.train_length={data.train_length}: should be a multiple of "
            f"config.mesh.sequence={splits}"
        )


def shardings_of(tree: Any, mesh: Mesh | AbstractMesh, splits: Mapping[str, P]) -> Any:
    """How each array of a tree (parameters, or what has them in it) lies on the mesh.

    Args:
      tree: of arrays or their shapes. Optimiser state has its parameter's path at the end of its
        own, and is split as that.
      mesh: of devices. An axis that does not divide an array's is left out of its split.
      splits: from `splits_of`.
    """

    def sharding(path: tuple, x: Any) -> NamedSharding:
        names = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
        ends = (".".join(names[first:]) for first in range(len(names)))
        spec = next((splits[end] for end in ends if end in splits), WHOLE)
        # Layers are stacked in front.
        whole = (None,) * (x.ndim - len(spec))
        return NamedSharding(mesh, _fitting((*whole, *spec), x.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def shapes_on(tree: Any, mesh: Mesh, splits: Mapping[str, P]) -> Any:
    """The shapes of a tree, as it is to lie on the mesh; arguments as of `shardings_of`."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings_of(tree, mesh, splits),
    )


def _fitting(axes: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """The split of `shape`'s first axes, as far as it is even."""

    def size(axis: Any) -> int:
        return math.prod(mesh.shape[name] for name in (axis if isinstance(axis, tuple) else [axis]))

    return P(
        *(
            axis if axis is not None and length % size(axis) == 0 else None
            for axis, length in zip(axes, shape, strict=False)
        )
    )


def place(tree: Any, shardings: Any) -> Any:
    """The tree on the devices; every process holds all of it before, and its own share after."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)

    return jax.tree.map(put, tree, shardings)


def copied_to(tree: Any, mesh: Mesh) -> Any:
    """The tree with a whole copy, on every device, of what does not lie on the mesh yet."""

    def put(x: Any) -> Any:
        on_it = isinstance(x, jax.Array) and x.sharding.device_set == set(mesh.devices.flat)
        return x if on_it else place(x, NamedSharding(mesh, P()))

    return jax.tree.map(put, tree)


def process_share(mesh: Mesh) -> tuple[int, int]:
    """Which part of every batch's rows this process has to read: (i, n) for the i-th of n.

    Processes whose devices split rows' tokens or products between them read the same rows.
    """
    devices = mesh.devices.reshape(row_shares(mesh), -1)
    me = jax.process_index()
    mine = [i for i, row in enumerate(devices) if any(d.process_index == me for d in row)]
    first, count = mine[0], len(mine)
    if mine != list(range(first, first + count)) or first % count or len(devices) % count:
        return 0, 1  # rows from here and there: simplest to read all
    return first // count, len(devices) // count


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A global batch on the mesh, from this process's share of its rows (see `process_share`).

    Arrays of as many columns as there are tokens are split over "sequence" as well.
    """
    return _on_mesh(batch, mesh, process_share(mesh))


def spread_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The same from the whole batch, which every process has."""
    return _on_mesh(batch, mesh, (0, 1))


def _on_mesh(
    batch: dict[str, np.ndarray], mesh: Mesh, share: tuple[int, int]
) -> dict[str, jax.Array]:
    (number, count), length = share, batch["tokens"].shape[1]

    def put(rows: np.ndarray) -> jax.Array:
        first, shape = number * len(rows), (count * len(rows), *rows.shape[1:])
        axes = (ROWS, "sequence") if shape[1:2] == (length,) else (ROWS,)

        def read(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(shape[0])
            return rows[start - first : stop - first, *index[1:]]

        sharding = NamedSharding(mesh, _fitting(axes, shape, mesh))
        return jax.make_array_from_callback(shape, sharding, read)

    return {name: put(rows) for name, rows in batch.items()}
