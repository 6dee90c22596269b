"""Grain pipelines: endless batches that depend on the seed and the step alone."""

import functools

import grain
import numpy as np
from jaxtyping import Integer

from lenext.data.corpus import Corpus
from lenext.data.masking import mask_tokens, masked_count
from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError

# The data lies in memory and the work is Python's: a second thread would only fight for the GIL
# (it doubles the CPU time of a batch). A few batches ahead hide a hiccup; a checkpoint counts the
# batches handed out, not those read.
READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)


def masked_lm_batches(
    corpus: Corpus,
    *,
    length: int,
    batch_size: int,
    seed: int,
    tokenizer: Tokenizer,
    rate: float = 0.15,
    packing: bool = False,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """Endless batches of random crops, masked as by `mask_tokens`.

    Global batch t, all shards' rows in shard order, depends on (seed, t) only. An epoch visits
    every crop once, in an order, at shifts and with masks that no other epoch has. Iterators save
    and restore their place with `get_state()` and `set_state()`, of which the state is JSON-able
    and the same for all shards, so a run may resume with another `shard_count`.

    Args:
      corpus: where crops are cut; documents shorter than `length` give none.
      length: tokens in a crop, n.
      batch_size: rows B of the global batch; this shard yields b = B / shard_count of them.
      seed: 0 or more.
      tokenizer: the one that made `corpus`.
      rate: share of the positions that are predicted.
      shard_index: which rows: b · shard_index up to b · (shard_index + 1).
      shard_count: number of shards, usually of processes.

    Returns:
      Batches of `mask_tokens`'s arrays, stacked: tokens [b, n], positions, targets, weights [b, k].

    Raises:
      UserError: no document is `length` long, `length` is below 2, `seed` below 0, `rate` not in
        (0, 1], or `batch_size` not a positive multiple of `shard_count`.
    """
    if batch_size < 1 or batch_size % shard_count:
        raise UserError(
            f"batch size {batch_size} must be a positive multiple of the number of shards, "
            f"{shard_count}"
        )
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard {shard_index} of {shard_count}")
    crops = random_crops(corpus, length=length, seed=seed)
    masked_count(length, rate)  # a bad rate should fail here, not in a reading thread
    mask = functools.partial(mask_tokens, tokenizer=tokenizer, rate=rate)
    # Batches are cut from the endless stream, across epochs; every shard_count-th is this shard's.
    # With a remainder to keep, Grain divides the endless length as a float, and batches of 1 fail.
    batches = crops.random_map(mask).batch(batch_size // shard_count, drop_remainder=True)
    return batches[shard_index::shard_count].to_iter_dataset(READ_OPTIONS)


def random_crops(corpus: Corpus, *, length: int, seed: int) -> grain.MapDataset:
    """Endless random access to shuffled crops [length] of the documents, in the corpus's dtype.

    A document of m tokens holds m // length crops end to end. Each time one is read it is shifted
    by up to the m % length tokens left over, so that cuts do not always fall on the same places.

    Raises:
      UserError: no document is `length` long, `length` is below 2, or `seed` below 0.
    """
    corpus.require_document(length, "training")
    if seed < 0:
        raise UserError(f"seed must be at least 0, not {seed}")
    crops_in = corpus.lengths // length
    leftover = corpus.lengths % length
    # Counts, not a list of all crops: memory goes with the documents, not with the tokens.
    first_crop = np.cumsum(crops_in) - crops_in

    def cut(crop: int, rng: np.random.Generator) -> Integer[np.ndarray, " n"]:
        document = np.searchsorted(first_crop, crop, side="right") - 1
        start = (crop - first_crop[document]) * length + rng.integers(leftover[document] + 1)
        return corpus.document(document)[start : start + length]

    crops = grain.MapDataset.range(int(crops_in.sum())).seed(seed)
    # Repeating before the random map gives each epoch its own randomness.
    return crops.shuffle().repeat().random_map(cut)


def causal_lm_batches(
    corpus, *, length, batch_size, seed, tokenizer, packing=False, shard_index=0, shard_count=1
):
    """Stand-in."""
    crops = random_crops(corpus, length=length + 1, seed=seed)

    def split(crop):
        crop = crop.astype(np.int32)
        return {"tokens": crop[:-1], "targets": crop[1:], "weights": np.ones(length, np.float32)}

    batches = crops.map(split).batch(batch_size // shard_count, drop_remainder=True)
    return batches[shard_index::shard_count].to_iter_dataset(READ_OPTIONS)
