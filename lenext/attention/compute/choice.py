"""Which implementation takes a call, and why."""

import dataclasses

from lenext.attention.compute import blocks, fused, tiles
from lenext.attention.compute.call import Call

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
      kernel: of "fused", which one; None for the others.
    """

    implementation: str
    block_size: int | None
    by_tiles: bool
    why: str
    kernel: str | None = None


def choose(call: Call, *, wanted: str, block_size: int | None, backend: str) -> Choice:
    """The implementation for a call: `wanted`, or what "auto" takes.

    Args:
      call: what is known of it.
      wanted: of `IMPLEMENTATIONS`.
      block_size: as given, or None for the default.
      backend: as `jax.default_backend()` names it.

    Raises:
      ValueError: for an unknown implementation, and for "fused" where it is declined.
    """
    if wanted not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {wanted!r}: choose from {', '.join(IMPLEMENTATIONS)}")
    kernel, why = fused.kernel_for(call, backend)
    if wanted == "fused" and kernel is None:
        raise ValueError(f"implementation 'fused' cannot take this call: {why}")
    batch, num_heads = call.batch, call.num_heads
    row_bytes = 4 * batch * call.queries * num_heads * call.keys
    asked = "asked for"
    if kernel is not None and (
        wanted == "fused" or (wanted == "auto" and kernel not in fused.UNTRIED)
    ):
        because = f"{kernel}: {why}"
        return Choice("fused", None, False, asked if wanted == "fused" else because, kernel)
    if wanted == "naive" or (wanted == "auto" and row_bytes < NAIVE_BYTES):
        small = f"all rows of logits together take {row_bytes} bytes, less than {NAIVE_BYTES}"
        return Choice("naive", None, False, asked if wanted == "naive" else small)
    if tiles.suits(call.method):
        keeps = call.method.visibility.keeps()
        size = tiles.default_tile(batch, num_heads, None if keeps is None else keeps[1])
        how = "its rows can be summed up key by key"
    else:
        size = blocks.default_block_size(batch, num_heads, call.keys)
        how = "its weights want complete rows"
    large = f"all rows of logits together take {row_bytes} bytes; {how}; not fused: {why}"
    return Choice(
        "blockwise",
        size if block_size is None else block_size,
        tiles.suits(call.method),
        f"{asked}; {how}" if wanted == "blockwise" else large,
    )
