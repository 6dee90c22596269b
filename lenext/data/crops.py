"""Crops for evaluation: the same every time, at every length from the same documents."""

import dataclasses
import heapq

import numpy as np
from jaxtyping import Int64, Integer

from lenext.data.corpus import Corpus
from lenext.data.masking import mask_tokens
from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Crops:
    """Rows of equal length cut from a corpus.

    Attributes:
      tokens: one crop a row.
      document: index in the corpus of the document that each was cut from.
      start: its first token's place in the document.
    """

    tokens: Integer[np.ndarray, "crops n"]
    document: Int64[np.ndarray, " crops"]
    start: Int64[np.ndarray, " crops"]


def evaluation_crops(
    corpus: Corpus,
    *,
    length: int,
    documents: int,
    tokens: int,
    lookahead: int = 0,
    advice: str = "",
) -> Crops:
    """Cuts crops of `length` from the longest documents, without overlap, repeat or padding.

    With `lookahead`, crops are that many tokens longer, for what is predicted after the last one;
    in all that follows n = length + lookahead is a crop's length.

    The `documents` longest that hold at least one crop are used, ties by name, so those used at a
    short length contain those used at a longer one. Each of these D is divided into
    m = max(1, round(tokens / (D · length))) equal parts (as many as hold a crop if that is fewer)
    and gives the middle of each. Rows go document by document, longest first.

    Args:
      corpus: where crops are cut.
      length: tokens that a model sees.
      documents: at most how many documents.
      tokens: about how many tokens in all crops together.
      lookahead: tokens of a crop beyond `length`; 1 for causal models.
      advice: ends the message where no document is that long.

    Raises:
      UserError: no document is n long, `length` is below 2, or `documents` or `tokens`
        below 1.
    """
    if documents < 1 or tokens < 1:
        raise UserError(
            f"evaluation needs at least 1 document and 1 token, not {documents} and {tokens}"
        )
    corpus.require_document(length, "evaluation", lookahead=lookahead, advice=advice)
    n = length + lookahead
    lengths = corpus.lengths
    longest = heapq.nsmallest(
        documents, range(len(lengths)), key=lambda i: (-lengths[i], corpus.names[i])
    )
    chosen = [i for i in longest if lengths[i] >= n]
    wanted = max(1, round(tokens / (len(chosen) * length)))
    document, start = [], []
    for i in chosen:
        m = min(wanted, lengths[i] // n)
        document.append(np.full(m, i, np.int64))
        # In whole numbers: part j is centred on (2j + 1) / 2m of the document.
        start.append(((2 * np.arange(m) + 1) * lengths[i] - m * n) // (2 * m))
    document, start = np.concatenate(document), np.concatenate(start)
    first = corpus.offsets[document] + start
    rows = corpus.tokens[first[:, None] + np.arange(n)]
    return Crops(tokens=rows, document=document, start=start)


def masked_crops(
    crops: Crops, *, seed: int, tokenizer: Tokenizer, rate: float = 0.15
) -> dict[str, np.ndarray]:
    """Masks each crop as `mask_tokens` does, stacked: tokens [C, n] and the others [C, k].

    A crop's masks depend on (seed, document, start, length) only: not on which other crops stand
    beside it, nor on the method that is evaluated.
    """
    length = crops.tokens.shape[1]
    rows = [
        mask_tokens(row, np.random.default_rng((seed, document, start, length)), tokenizer, rate)
        for row, document, start in zip(crops.tokens, crops.document, crops.start, strict=True)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
