"""Which implementation takes a call, and why."""

import dataclasses
from typing import Any

from lenext.attention import blockwise, fused, tiles
from lenext.attention.method import Method

IMPLEMENTATIONS = ("auto", "naive", "blockwise", "fused")
# Logits of fewer bytes go all at once: the definition keeps several such arrays.
NAIVE_BYTES = 8 * 2**20


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a call of `attend` takes.

    Attributes:
      implementation: "naive", "blockwise" or "fused".
      block_size: queries a block of "blockwise", and keys too where rows are summed up key by
        key; None for the others.
      by_tiles: whether "blockwise" sums rows up key by key, rather than making complete rows.
      why: the reason, a sentence.
    """

    implementation: str
    block_size: int | None
    by_tiles: bool
    why: str


def choose(
    method: Method,
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    v_shape: tuple[int, ...],
    dtype: Any,
    *,
    causal: bool,
    ordered: bool,
    hidden: bool,
    wanted: str,
    block_size: int | None,
    backend: str,
) -> Choice:
    """The implementation for a call: `wanted`, or what "auto" takes.

    Args:
      method: the method.
      q_shape: [B, T, N, H].
      k_shape: [B, S, K, H].
      v_shape: [B, S, K, V].
      dtype: of all three.
      causal: whether a row sees later keys.
      ordered: positions are the defaults.
      hidden: there is padding, or documents of a pack.
      wanted: of `IMPLEMENTATIONS`.
      block_size: as given, or None for the default.
      backend: as `jax.default_backend()` names it.

    Raises:
      ValueError: for an unknown implementation, and for "fused" where it is declined.
    """
    if wanted not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {wanted!r}: choose from {', '.join(IMPLEMENTATIONS)}")
    declined = fused.why_declined(
        method, q_shape, k_shape, v_shape, dtype,
        causal=causal, ordered=ordered, hidden=hidden, backend=backend,
    )  # fmt: skip
    if wanted == "fused" and declined is not None:
        raise ValueError(f"implementation 'fused' cannot take this call: {declined}")
    batch, length, num_heads, _ = q_shape
    row_bytes = 4 * batch * length * num_heads * k_shape[1]
    asked = "asked for"
    if wanted == "fused" or (wanted == "auto" and declined is None):
        kernel = f"{fused.KERNELS[backend]} kernel can compute it"
        return Choice("fused", None, False, asked if wanted == "fused" else kernel)
    if wanted == "naive" or (wanted == "auto" and row_bytes < NAIVE_BYTES):
        small = f"all rows of logits together take {row_bytes} bytes, less than {NAIVE_BYTES}"
        return Choice("naive", None, False, asked if wanted == "naive" else small)
    if tiles.suits(method):
        keeps = method.visibility.keeps()
        size = tiles.default_tile(batch, num_heads, None if keeps is None else keeps[1])
        how = "its rows can be summed up key by key"
    else:
        size = blockwise.default_block_size(batch, num_heads, k_shape[1])
        how = "its weights want complete rows"
    large = f"all rows of logits together take {row_bytes} bytes; {how}; not fused: {declined}"
    return Choice(
        "blockwise",
        size if block_size is None else block_size,
        tiles.suits(method),
        f"{asked}; {how}" if wanted == "blockwise" else large,
    )
