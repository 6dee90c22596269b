"""Rows packed from documents of any length: pieces of documents, and their segments."""

import grain
import numpy as np
from jaxtyping import Int32

from lenext.data.corpus import Corpus
from lenext.data.token_cache import Pages
from lenext.errors import UserError

# Rows that are filled at a time, by first fit. More of them leave less padding, cost memory and
# delay the first row. By the length alone: rows must not depend on the batch size.
PACKED_TOKENS = 2**19


def packed_rows(
    corpus: Corpus, *, length: int, seed: int, pad_id: int, lookahead: int
) -> grain.IterDataset:
    """Endless rows that every document has its part in, however short.

    A document is cut into pieces (see `document_pieces`), all of an epoch's are shuffled, and
    Grain's packer fills rows with them: first fit, into several rows at a time.

    Args:
      corpus: documents of a single token are left out.
      length: tokens in a row, n.
      seed: 0 or more.
      pad_id: fills rows up.
      lookahead: 1 if each token's target is the one after it, 0 if it is itself.

    Returns:
      Dicts of `tokens` and `targets`, int32 [n], `pad_id` where nothing is, and `segment_ids`,
      int32 [n], 1 and up, 0 for padding. Neither leaves its segment's document.

    Raises:
      UserError: no document has 2 tokens, `length` is below 2, or `seed` below 0.
    """
    pieces = document_pieces(corpus, length=length, seed=seed, lookahead=lookahead)
    bins = int(np.clip(PACKED_TOKENS // length, 8, 64))
    # No thread here: the pipeline makes whole batches ahead.
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    rows = grain.experimental.FirstFitPackIterDataset(
        pieces.to_iter_dataset(reading),
        length_struct={"pairs": length},
        num_packing_bins=bins,
        seed=seed,
        padding_struct={"pairs": pad_id},
    )
    return rows.map(_unpair)


def document_pieces(corpus: Corpus, *, length: int, seed: int, lookahead: int) -> grain.MapDataset:
    """Endless random access to shuffled pieces of the documents, at most `length` pairs each.

    A pair is a token and its target: the token `lookahead` places on. A document of u pairs has
    ceil(u / length) pieces, end to end: the first one is of random length in each epoch, as far as
    the others, of `length`, leave it a choice, and the last one takes the rest. Each pair of each
    document comes once an epoch. Documents of one token have nothing to be predicted from.

    Returns:
      Dicts of `pairs`, int32 [m, 2], m <= length.

    Raises:
      UserError: no document has 2 tokens, `length` is below 2, or `seed` below 0.
    """
    if length < 2:
        raise UserError(f"training length must be at least 2, not {length}")
    if seed < 0:
        raise UserError(f"seed must be at least 0, not {seed}")
    pairs_in = np.where(corpus.lengths > 1, corpus.lengths - lookahead, 0)
    pieces_in = -(-pairs_in // length)
    # Counts, not a list of all pieces: memory goes with the documents, not with the tokens.
    ends = np.cumsum(pieces_in)
    total = int(ends[-1]) if len(ends) else 0
    if not total:
        raise UserError(f"no document in split {corpus.split!r} of {corpus.name} has 2 tokens")

    pages = Pages(corpus.tokens)

    def cut(index: int, piece: int) -> dict[str, Int32[np.ndarray, "m 2"]]:
        document = int(np.searchsorted(ends, piece, side="right"))
        pairs = int(pairs_in[document])
        place = piece - int(ends[document] - pieces_in[document])
        # All pieces of a document have to know where the first one ends.
        rng = np.random.default_rng((seed, index // total, document))
        first = int(rng.integers((pairs - 1) % length + 1, min(pairs, length), endpoint=True))
        start = 0 if place == 0 else first + (place - 1) * length
        end = min(first + place * length, pairs)
        tokens = corpus.document(document)[start : end + lookahead]
        pages.touch(tokens)
        both = (tokens[: end - start], tokens[lookahead:])
        return {"pairs": np.stack(both, axis=1, dtype=np.int32)}

    pieces = grain.MapDataset.range(total).seed(seed)
    return pieces.shuffle().repeat().map_with_index(cut)


def _unpair(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "tokens": row["pairs"][:, 0],
        "targets": row["pairs"][:, 1],
        "segment_ids": row["pairs_segment_ids"],
    }
