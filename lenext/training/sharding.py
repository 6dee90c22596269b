"""Placing parameters and batches on devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lenext.errors import UserError


def data_mesh() -> Mesh:
    """All devices along one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Checks that a batch, and each of its `accumulate` micro-batches, falls evenly onto the mesh.

    Raises:
      UserError: where it does not.
    """
    if batch_size % (accumulate * mesh.size):
        parts = f"config.training.accumulate={accumulate} times " if accumulate > 1 else ""
        raise UserError(
            f"config.data.batch_size={batch_size}: should be a multiple of {parts}"
            f"the {mesh.size} devices"
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of the tree on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a global batch, spread over the data axis."""
    sharding = NamedSharding(mesh, P("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
