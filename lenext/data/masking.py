"""BERT's corruption of tokens for masked language modelling."""

import numpy as np
from jaxtyping import Integer

from lenext.data.tokenizer_files import MASK_TOKENS
from lenext.data.tokenizers import Tokenizer
from lenext.errors import UserError


def masked_count(n: int, rate: float) -> int:
    """Returns how many of n positions are predicted, max(1, round(rate · n)).

    Raises:
      UserError: `rate` is not in (0, 1].
    """
    if not 0 < rate <= 1:
        raise UserError(f"masking rate must be above 0 and at most 1, not {rate}")
    return max(1, round(rate * n))


def require_mask(tokenizer: Tokenizer) -> int:
    """Returns the id of the tokeniser's mask.

    Raises:
      UserError: it has none.
    """
    if tokenizer.mask_id is None:
        raise UserError(
            "masked language modelling needs a mask token, and the tokenizer has none of "
            f"{', '.join(MASK_TOKENS)}; take another tokenizer or the causal objective"
        )
    return tokenizer.mask_id


def mask_tokens(
    tokens: Integer[np.ndarray, " n"],
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    rate: float = 0.15,
    *,
    real: int | None = None,
) -> dict[str, np.ndarray]:
    """Chooses positions to predict and corrupts them (Devlin et al. 2019, section 3.1).

    k = `masked_count(n, rate)` positions are chosen without replacement; the count does not vary,
    so shapes are static. Each becomes the mask with probability 0.8, a uniformly random regular id
    with 0.1 (which may be its own), and stays with 0.1.

    Args:
      tokens: a row.
      rng: decides.
      tokenizer: the one that made the row; what its frame starts a row with is not chosen.
      rate: share of the tokens that are predicted.
      real: how many tokens the row begins with, the rest being padding; None: all. Of them
        `masked_count(real, rate)` are chosen, and what is left of the k places is filled up with
        the last position, which is padding then, and weight 0.

    Returns:
      tokens: int32 [n], the corrupted ones.
      predicted: int32 [k], where they stand, ascending.
      targets: int32 [k], the original ids there.
      weights: float32 [k], 1 where a token is predicted.

    Raises:
      UserError: `rate` is not in (0, 1], or the tokeniser has no mask.
    """
    n = len(tokens)
    real = n if real is None else real
    mask_id = require_mask(tokenizer)
    start = tokenizer.frame.count_start(tokens[:real])
    k, chosen = masked_count(n, rate), min(masked_count(real, rate), real - start)
    masked = start + np.sort(rng.choice(real - start, chosen, replace=False, shuffle=False))
    fate = rng.random(chosen)
    random_ids = rng.choice(tokenizer.regular_ids, chosen)
    corrupted = tokens.astype(np.int32)
    corrupted[masked] = np.where(
        fate < 0.8, mask_id, np.where(fate < 0.9, random_ids, corrupted[masked])
    )
    positions = np.full(k, n - 1, np.int32)
    positions[:chosen] = masked
    return {
        "tokens": corrupted,
        "predicted": positions,
        "targets": tokens[positions].astype(np.int32),
        "weights": (np.arange(k) < chosen).astype(np.float32),
    }
