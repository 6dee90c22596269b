"""What is known of a call before it runs: all that shapes and arguments say, and no array."""

import dataclasses

from lenext.attention.axes.method import Method


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of `attend`, without its numbers.

    Attributes:
      method: the method.
      q_shape: [B, T, N, H].
      k_shape: [B, S, K, H].
      v_shape: [B, S, K, V].
      dtype: of all three, by name.
      causal: whether keys after the query are hidden.
      ordered: positions are the defaults (keys 0..S-1, queries the last T of them).
      masked: padding or documents hide some keys.
      length: tokens in every document, for what follows that; unless it is given as an array.
      part: `ordered`, but the queries are T in a row of others than the last.
    """

    method: Method
    q_shape: tuple[int, ...]
    k_shape: tuple[int, ...]
    v_shape: tuple[int, ...]
    dtype: str
    causal: bool
    ordered: bool
    masked: bool
    length: int
    part: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def batch(self) -> int:
        """B."""
        return self.q_shape[0]

    @property
    def queries(self) -> int:
        """T."""
        return self.q_shape[1]

    @property
    def num_heads(self) -> int:
        """N."""
        return self.q_shape[2]

    @property
    def head_dim(self) -> int:
        """H."""
        return self.q_shape[3]

    @property
    def keys(self) -> int:
        """S."""
        return self.k_shape[1]
