"""BERT's corruption of tokens for masked language modelling."""

import numpy as np
from jaxtyping import Integer

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


def mask_tokens(
    tokens: Integer[np.ndarray, " n"],
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    rate: float = 0.15,
) -> dict[str, np.ndarray]:
    """Chooses positions to predict and corrupts them (Devlin et al. 2019, section 3.1).

    k = `masked_count(n, rate)` positions are chosen without replacement; the count does not vary,
    so shapes are static. Each becomes the mask with probability 0.8, a uniformly random regular id
    with 0.1 (which may be its own), and stays with 0.1.

    Returns:
      tokens: int32 [n], the corrupted ones.
      positions: int32 [k], ascending.
      targets: int32 [k], the original ids there.
      weights: float32 [k], ones.

    Raises:
      UserError: `rate` is not in (0, 1].
    """
    k = masked_count(len(tokens), rate)
    positions = np.sort(rng.choice(len(tokens), k, replace=False, shuffle=False))
    targets = tokens[positions].astype(np.int32)
    fate = rng.random(k)
    random_ids = rng.integers(tokenizer.num_regular, size=k)
    corrupted = tokens.astype(np.int32)
    corrupted[positions] = np.where(
        fate < 0.8, tokenizer.mask_id, np.where(fate < 0.9, random_ids, targets)
    )
    return {
        "tokens": corrupted,
        "positions": positions.astype(np.int32),
        "targets": targets,
        "weights": np.ones(k, np.float32),
    }
