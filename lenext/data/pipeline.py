"""Grain pipelines: endless batches that depend on the seed and the step alone."""

import atexit
import functools
import weakref
from collections.abc import Callable

import grain
import numpy as np
from jaxtyping import Integer

from lenext.data.corpus import Corpus
from lenext.data.frames import Frame
from lenext.data.masking import mask_tokens, masked_count, require_mask
from lenext.data.packing import packed_rows
from lenext.data.positions import PositionLaw
from lenext.data.tasks import TASKS
from lenext.data.token_cache import Pages
from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError

# The data lies in memory and the work is Python's: a second thread would only fight for the GIL
# (it doubles the CPU time of a batch). A few batches ahead hide a hiccup; a checkpoint counts the
# batches handed out, not those read.
BATCHES_AHEAD = 8
READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCHES_AHEAD)
ADVICE = "packing would use documents of fewer tokens"


def causal_lm_batches(
    corpus: Corpus,
    *,
    length: int,
    batch_size: int,
    seed: int,
    tokenizer: Tokenizer,
    packing: bool = False,
    law: PositionLaw | None = None,
    task: str = "",
    needles: int = 1,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """Endless batches for next-token prediction.

    Without `packing`, rows are random crops of documents that have `length` + 1 tokens; an epoch
    visits every crop once. Each starts with the start of the tokeniser's frame, for which its first
    tokens make room. With `packing`, rows are packed from pieces of all documents of 2 tokens and
    more, and an epoch predicts each token of each document but the first once (see `packed_rows`).

    Order, states and shards are as of `masked_lm_batches`.

    Args:
      corpus: where rows are cut.
      length: tokens in a row, n.
      batch_size: rows B of the global batch; this shard yields b = B / shard_count of them.
      seed: 0 or more.
      tokenizer: the one that made `corpus`.
      packing: whether rows are packed.
      law: of the tokens' positions; None: as they stand in the row. Not with `packing`.
      task: of `lenext.data.tasks.TASKS`, hidden in each crop; "" for the text as it is. Not with
        `packing`.
      needles: of the task, in a row.
      shard_index: which rows: b · shard_index up to b · (shard_index + 1).
      shard_count: number of shards, usually of processes.

    Returns:
      Batches of tokens, int32 [b, n], targets, int32 [b, n], the tokens that follow, and weights,
      float32 [b, n], 1 where there is one to predict. With `packing` also segment_ids, int32
      [b, n]: 1 and up for a row's documents, of which no target crosses a border, and 0 for
      padding, whose tokens and targets are the tokeniser's `pad_id` and whose weights are 0.
      With `law` also token_positions, int32 [b, n]. With `task` weights are 1 at answers only.

    Raises:
      UserError: no document is long enough, `length` is below 2 or too short for the task, `seed`
        below 0, or `batch_size` not a positive multiple of `shard_count`.
      ValueError: `law` does not fit `length`, or is given with `packing`, as `task` is.
    """
    _check_shards(batch_size, shard_index, shard_count)
    if not packing:
        crops = random_crops(corpus, length=length, seed=seed, lookahead=1)
        rows = (
            crops.random_map(_asker(task, tokenizer, needles, length))
            if task
            else crops.map(functools.partial(_shift, frame=tokenizer.frame))
        )
        rows = _with_positions(rows, law, length)
        return _crop_batches(rows, batch_size, shard_index, shard_count)
    _refuse(law)
    if task:
        raise ValueError(f"task {task!r}: should be empty with packing, whose rows are no one text")
    rows = packed_rows(corpus, length=length, seed=seed, pad_id=tokenizer.pad_id, lookahead=1)
    rows = rows.map(lambda row: row | {"weights": (row["segment_ids"] > 0).astype(np.float32)})
    return _row_batches(rows, batch_size, shard_index, shard_count)


def masked_lm_batches(
    corpus: Corpus,
    *,
    length: int,
    batch_size: int,
    seed: int,
    tokenizer: Tokenizer,
    rate: float = 0.15,
    packing: bool = False,
    law: PositionLaw | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """Endless batches for masked language modelling, masked as by `mask_tokens`.

    Global batch t, all shards' rows in shard order, depends on (seed, t) only. An epoch visits
    every crop once, in an order, at shifts and with masks that no other epoch has. Iterators save
    and restore their place with `get_state()` and `set_state()`, of which the state is JSON-able
    and the same for all shards, so a run may resume with another `shard_count`.

    Without `packing`, rows are random crops; with it, they are packed from pieces of all documents
    of 2 tokens and more (see `packed_rows`), which each shard does for the global batch.

    Args:
      corpus: where rows are cut; without `packing`, documents shorter than `length` give none.
      length: tokens in a row, n.
      batch_size: rows B of the global batch; this shard yields b = B / shard_count of them.
      seed: 0 or more.
      tokenizer: the one that made `corpus`.
      rate: share of the positions that are predicted.
      packing: whether rows are packed.
      law: of the tokens' positions; None: as they stand in the row. Not with `packing`.
      shard_index: which rows: b · shard_index up to b · (shard_index + 1).
      shard_count: number of shards, usually of processes.

    Returns:
      Batches of `mask_tokens`'s arrays, stacked: tokens [b, n], positions, targets, weights [b, k].
      With `packing` also segment_ids, int32 [b, n]: 1 and up for a row's documents, 0 for padding,
      of which nothing is predicted. With `law` also token_positions, int32 [b, n], those of all
      tokens: `positions` says which of them are predicted.

    Raises:
      UserError: no document is long enough, `length` is below 2, `seed` below 0, `rate` not in
        (0, 1], `batch_size` not a positive multiple of `shard_count`, or the tokeniser has no mask.
      ValueError: `law` does not fit `length`, or is given with `packing`.
    """
    _check_shards(batch_size, shard_index, shard_count)
    # What fails should fail here, not in a reading thread.
    masked_count(max(length, 1), rate)
    require_mask(tokenizer)
    mask = functools.partial(mask_tokens, tokenizer=tokenizer, rate=rate)
    if not packing:
        crops = random_crops(corpus, length=length, seed=seed)
        # Only where there is a start: each step of a pipeline has a part in what it draws.
        crops = crops.map(tokenizer.frame.started) if tokenizer.frame.start else crops
        rows = crops.random_map(mask)
        rows = _with_positions(rows, law, length)
        return _crop_batches(rows, batch_size, shard_index, shard_count)
    _refuse(law)

    def mask_row(row: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        segments = row["segment_ids"]
        real = int(np.count_nonzero(segments))  # they come first
        return mask(row["tokens"], rng, real=real) | {"segment_ids": segments}

    rows = packed_rows(corpus, length=length, seed=seed, pad_id=tokenizer.pad_id, lookahead=0)
    rows = rows.seed(seed).random_map(mask_row)
    return _row_batches(rows, batch_size, shard_index, shard_count)


def random_crops(corpus: Corpus, *, length: int, seed: int, lookahead: int = 0) -> grain.MapDataset:
    """Endless random access to shuffled crops [n] of the documents, in the corpus's dtype.

    n = length + lookahead. A document of m tokens holds m // n crops end to end. Each time one is
    read it is shifted by up to the m % n tokens left over, so that cuts do not always fall on the
    same places.

    Raises:
      UserError: no document has n tokens, `length` is below 2, or `seed` below 0.
    """
    corpus.require_document(length, "training", lookahead=lookahead, advice=ADVICE)
    if seed < 0:
        raise UserError(f"seed must be at least 0, not {seed}")
    n = length + lookahead
    crops_in = corpus.lengths // n
    leftover = corpus.lengths % n
    # Counts, not a list of all crops: memory goes with the documents, not with the tokens.
    first_crop = np.cumsum(crops_in) - crops_in
    pages = Pages(corpus.tokens)

    def cut(crop: int, rng: np.random.Generator) -> Integer[np.ndarray, " n"]:
        document = np.searchsorted(first_crop, crop, side="right") - 1
        start = (crop - first_crop[document]) * n + rng.integers(leftover[document] + 1)
        found = corpus.document(document)[start : start + n]
        pages.touch(found)
        return found

    crops = grain.MapDataset.range(int(crops_in.sum())).seed(seed)
    # Repeating before the random map gives each epoch its own randomness.
    return crops.shuffle().repeat().random_map(cut)


def _shift(crop: Integer[np.ndarray, " n_plus_1"], frame: Frame) -> dict[str, np.ndarray]:
    tokens = frame.started(crop).astype(np.int32)
    weights = np.ones(len(crop) - 1, np.float32)
    weights[: max(0, len(frame.start) - 1)] = 0.0  # the start is not predicted
    return {"tokens": tokens[:-1], "targets": tokens[1:], "weights": weights}


def _asker(task: str, tokenizer: Tokenizer, needles: int, length: int) -> Callable:
    """What makes rows of a task of crops; a length that cannot hold them fails here."""

    def ask(crop: Integer[np.ndarray, " n_plus_1"], rng: np.random.Generator) -> dict:
        example = TASKS[task](crop, rng, tokenizer, needles, None)
        weights = (example.answer[1:] >= 0).astype(np.float32)
        return _shift(example.tokens, tokenizer.frame) | {"weights": weights}

    ask(np.zeros(length + 1, np.int64), np.random.default_rng(0))
    return ask


def _with_positions(
    rows: grain.MapDataset, law: PositionLaw | None, length: int
) -> grain.MapDataset:
    """Rows with positions of their own, if there is a law for them; nothing else changes."""
    if law is None:
        return rows
    law.check(length)

    def add(row: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return row | {"token_positions": law(length, rng)}

    return rows.random_map(add)


def _refuse(law: PositionLaw | None) -> None:
    if law is not None:
        raise ValueError("law: should be None with packing, whose rows hold several documents")


def _check_shards(batch_size: int, shard_index: int, shard_count: int) -> None:
    if batch_size < 1 or batch_size % shard_count:
        raise UserError(
            f"batch size {batch_size} must be a positive multiple of the number of shards, "
            f"{shard_count}"
        )
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard {shard_index} of {shard_count}")


def _crop_batches(
    rows: grain.MapDataset, batch_size: int, shard_index: int, shard_count: int
) -> grain.IterDataset:
    """Batches of rows that can be read in any order, read ahead."""
    # Batches are cut from the endless stream, across epochs; every shard_count-th is this shard's.
    # With a remainder to keep, Grain divides the endless length as a float, and batches of 1 fail.
    batches = rows.batch(batch_size // shard_count, drop_remainder=True)
    return batches[shard_index::shard_count].to_iter_dataset(READ_OPTIONS)


def _row_batches(
    rows: grain.IterDataset, batch_size: int, shard_index: int, shard_count: int
) -> grain.IterDataset:
    """Batches of rows that come one after another, made ahead.

    What goes into a row depends on all rows before, so each shard makes the global batch, and a
    state means the same to all of them.
    """
    mine = batch_size // shard_count
    rows_of_shard = slice(shard_index * mine, (shard_index + 1) * mine)
    batches = rows.batch(batch_size, drop_remainder=True).map(
        lambda batch: {name: rows[rows_of_shard] for name, rows in batch.items()}
    )
    return _Ahead(batches, prefetch_buffer_size=BATCHES_AHEAD)


class _Ahead(grain.experimental.ThreadPrefetchIterDataset):
    """Grain's thread that makes elements ahead, closed in time at the end of the process.

    Left to itself, an iterator that is still open then complains on stderr: what its destructor
    needs is gone.
    """

    def __iter__(self):
        iterator = super().__iter__()
        _OPEN.add(iterator)
        return iterator


_OPEN: weakref.WeakSet[grain.DatasetIterator] = weakref.WeakSet()


@atexit.register
def _close_iterators() -> None:
    for iterator in list(_OPEN):
        iterator.close()
        iterator.close = lambda: None  # what its destructor calls, and cannot run by then
