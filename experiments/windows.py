"""Where the weight of attention lies: by distance, and the window that holds most of it."""

import numpy as np
from jaxtyping import Array, Float

from lenext.config import Config
from lenext.data import open_split, open_tokenizer
from lenext.evaluation.protocols import CropSettings, get_protocol

LONGER = 4  # lengths that are looked into, over the training length
DOCUMENTS = 8  # whose weights by distance are averaged
SHARE = 0.9  # of a row's weight, in its effective window


def validation_crops(config: Config) -> np.ndarray:
    """Token ids [B, n], n = `LONGER` L, of a document each, masked as in the evaluation."""
    tokenizer = open_tokenizer(config, bos=config.eval.bos)
    corpus = open_split(config.data, config.eval.split, tokenizer)
    protocol = get_protocol(config.eval.protocol, "masked_lm", "config.eval.protocol")
    sampling = CropSettings(
        documents=DOCUMENTS, tokens=1, seed=config.eval.seed, mask_rate=config.data.mask_rate
    )
    length = LONGER * config.data.train_length
    return protocol.prepare(corpus, tokenizer, length, length, sampling).batch["tokens"]


def share_by_distance(
    maps: Float[Array | np.ndarray, "layers B N T T"],
) -> Float[np.ndarray, "layers T"]:
    """How much of a row's weight lies at each distance |Δ|, on both sides together.

    Means over rows, heads and sequences; a layer's shares sum to 1 where its weights do.
    """
    mean = np.asarray(maps, np.float64).mean(axis=(1, 2))
    place = np.arange(mean.shape[-1])
    distance = np.abs(place[:, None] - place).ravel()
    return np.stack([np.bincount(distance, weights=layer.ravel()) for layer in mean]) / len(place)


def effective_window(share: Float[np.ndarray, "layers T"]) -> list[int]:
    """By layer, the smallest w such that keys at |Δ| < w hold `SHARE` of the weight."""
    total = np.cumsum(share, axis=-1)
    return [int(np.argmax(layer >= SHARE * layer[-1])) + 1 for layer in total]
