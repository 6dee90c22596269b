"""The batches that a config asks for."""

from typing import Any

from jax.sharding import Mesh

from lenext.config import Config
from lenext.data import (
    Corpus,
    Pose,
    RandomPositions,
    Tokenizer,
    causal_lm_batches,
    masked_lm_batches,
)
from lenext.data.positions import PositionLaw
from lenext.models import FAMILIES
from lenext.parallel.meshes import process_share


def make_batches(config: Config, corpus: Corpus, tokenizer: Tokenizer, mesh: Mesh) -> Any:
    """This process's share of the endless batches: a Grain iterator, which saves its place.

    Global batches depend on the seed and the step alone, whatever the mesh.

    Raises:
      UserError: for lengths or sizes that the data does not hold.
    """
    data = config.data
    shard_index, shard_count = process_share(mesh)
    shared: dict[str, Any] = {
        "length": data.train_length,
        "batch_size": data.batch_size,
        "seed": config.seed,
        "tokenizer": tokenizer,
        "packing": data.packing,
        "law": _law(data),
        "shard_index": shard_index,
        "shard_count": shard_count,
    }
    if FAMILIES[config.model.family].objective == "masked_lm":
        return iter(masked_lm_batches(corpus, rate=data.mask_rate, **shared))
    return iter(causal_lm_batches(corpus, task=data.task, needles=data.needles, **shared))


def _law(data: Config) -> PositionLaw | None:
    match data.positions:
        case "pose":
            return Pose(data.target_length, data.pose_chunks)
        case "random":
            return RandomPositions(data.target_length)
    return None
