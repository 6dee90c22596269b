"""Position as a term on the logits that follows the distance: ALiBi and its kin."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lenext.attention.axes.axis import Params, Position, option
from lenext.attention.axes.gates import differences, running_sum
from lenext.attention.axes.position import PartialRope


@dataclasses.dataclass(frozen=True)
class Alibi(Position):
    """ALiBi (arXiv 2108.12409): bias -m_h |delta|, no rotation; symmetric where not causal.

    The slopes m fall geometrically; `slopes="harmonic"` takes 1 / h of the h-th head (NAPE, arXiv
    2506.16640). Of a share of the heads they count its own.
    """

    trained_kind: ClassVar[str] = "alibi"
    slopes: str = option("geometric", str, choices=("geometric", "harmonic"))

    @property
    def kind(self) -> str:  # noqa: D102
        return "alibi" if self.slopes == "geometric" else "alibi, harmonic"

    def bias(self, rows, params):  # noqa: D102
        del params
        heads = rows.num_heads
        harmonic = self.slopes == "harmonic"
        made = 1 / np.arange(1, heads + 1) if harmonic else alibi_slopes(heads)
        slopes = jnp.asarray(made, jnp.float32)
        return -slopes[None, :, None, None] * jnp.abs(rows.delta).astype(jnp.float32)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """m_h = 2^(-8h/N) for h = 1..N (ALiBi, section 3).

    Where N is no power of two: the slopes of N' heads, the largest power of two below N, and then
    as many as are missing of every other slope of 2N' heads, from the first.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
    between = 2.0 ** (-4.0 / power * np.arange(1, 2 * power + 1, 2))
    return np.concatenate([slopes, between[: num_heads - power]])


@dataclasses.dataclass(frozen=True)
class BucketBias(Position):
    """T5's bias (arXiv 1910.10683): a number learned for each head and bucket of delta, from 0.

    Of the buckets half hold one distance each, the others grow logarithmically up to
    `max_distance`, and the last holds all beyond. Where keys after the query are seen, half of all
    buckets are theirs. No rotation. T5 has no 1 / sqrt(H) (`scaled=False`) and one table for all
    layers; here each has its own.
    """

    trained_kind: ClassVar[str] = "t5_bias"
    buckets: int = option(32, int, at_least=4)
    max_distance: int = option(128, int, at_least=2)
    scaled: bool = option(True, bool)

    def __post_init__(self):
        super().__post_init__()
        if self.max_distance <= self.buckets // 2:
            raise ValueError(
                f"option max_distance={self.max_distance}: should be above half of buckets="
                f"{self.buckets}"
            )

    def init_params(self, num_heads: int, head_dim: int, train_length: int) -> Params:  # noqa: D102
        del head_dim, train_length
        return {"table": jnp.zeros((int(self.buckets), num_heads), jnp.float32)}

    def gain(self, rows):  # noqa: D102
        return None if self.scaled else math.sqrt(rows.head_dim)

    def bias(self, rows, params):  # noqa: D102
        sided = 1 if rows.causal else 2
        of_side = bucket_of_distance(int(self.buckets) // sided, int(self.max_distance))
        bucket = jnp.asarray(of_side)[jnp.minimum(jnp.abs(rows.delta), self.max_distance)]
        if not rows.causal:
            bucket = bucket + jnp.where(rows.delta < 0, self.buckets // 2, 0)
        return jnp.moveaxis(params["table"][bucket[:, 0]], -1, 1)


def bucket_of_distance(buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance from 0 to `max_distance`, int32: T5's, of one side."""
    exact = buckets // 2
    distance = np.arange(max_distance + 1)
    # Whole numbers of steps are reached exactly, whichever way logarithms round.
    steps = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact)
    far = exact + np.floor((buckets - exact) * steps + 1e-9).astype(np.int64)
    return np.where(distance < exact, distance, np.minimum(far, buckets - 1)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class KerpleLog(Position):
    """KERPLE, logarithmic (arXiv 2205.09921): bias -p_h ln(1 + a_h |delta|), no rotation.

    p and a are learned through their logarithms, which keeps them positive. Models start them as
    the authors do, p uniform from 0 to 2 and a from 0 to 1, both at least 0.01; undrawn they are 1.
    """

    trained_kind: ClassVar[str] = "kerple_log"

    def init_params(self, num_heads: int, head_dim: int, train_length: int) -> Params:  # noqa: D102
        del head_dim, train_length
        return {
            "log_p": jnp.zeros((num_heads,), jnp.float32),
            "log_a": jnp.zeros((num_heads,), jnp.float32),
        }

    def draw_params(self, params, key):  # noqa: D102
        keys = jax.random.split(key)
        return {
            name: jnp.log(
                jnp.maximum(jax.random.uniform(own, params[name].shape, maxval=most), 0.01)
            )
            for own, name, most in zip(keys, ("log_p", "log_a"), (2.0, 1.0), strict=True)
        }

    def bias(self, rows, params):  # noqa: D102
        p, a = (jnp.exp(params[name])[None, :, None, None] for name in ("log_p", "log_a"))
        return -p * jnp.log1p(a * jnp.abs(rows.delta).astype(jnp.float32))


FIRE_WIDTH = 32  # hidden units of its MLP
FIRE_START = 0.1  # c


@dataclasses.dataclass(frozen=True)
class Fire(Position):
    """FIRE (arXiv 2310.04418): bias MLP_h(psi(|delta|) / psi(max(i, m L))), psi(x) = ln(1 + |c| x).

    i is the query's place in its document, so a distance is seen relative to what there is to see.
    One MLP of a hidden layer of 32 ReLUs gives the bias of every head, as in the authors' code; c
    starts at 0.1, the threshold's factor m at 1. No rotation.
    """

    trained_kind: ClassVar[str] = "fire"

    def init_params(self, num_heads: int, head_dim: int, train_length: int) -> Params:
        """Weights uniform within 1 / sqrt(fan in), drawn from a seed of their own."""
        del head_dim, train_length
        draw = np.random.default_rng(0).uniform
        outer = 1 / math.sqrt(FIRE_WIDTH)
        values = {
            "c": np.full((), FIRE_START),
            "threshold": np.ones(()),
            "inner": draw(-1, 1, FIRE_WIDTH),
            "inner_bias": draw(-1, 1, FIRE_WIDTH),
            "outer": draw(-outer, outer, (FIRE_WIDTH, num_heads)),
            "outer_bias": draw(-outer, outer, num_heads),
        }
        return {name: jnp.asarray(x, jnp.float32) for name, x in values.items()}

    def bias(self, rows, params):  # noqa: D102
        def psi(x):
            return jnp.log1p(jnp.abs(params["c"]) * x)

        place = (rows.q_positions[:, None, :, None] - rows.start).astype(jnp.float32)
        span = jnp.maximum(place, jnp.abs(params["threshold"]) * rows.train_length)
        relative = psi(jnp.abs(rows.delta).astype(jnp.float32)) / psi(span)
        inner, inner_bias = (
            params[name][None, None, None, None, :] for name in ("inner", "inner_bias")
        )
        hidden = jax.nn.relu(relative[..., None] * inner + inner_bias)[:, 0]
        outer = jnp.einsum(
            "btsm,mn->bnts", hidden, params["outer"], precision=jax.lax.Precision.HIGHEST
        )
        return outer + params["outer_bias"][None, :, None, None]


@dataclasses.dataclass(frozen=True)
class ScaleInvariant(PartialRope):
    """Scale-invariant attention (arXiv 2505.17083): gain a and bias 1 - a^2 on p-RoPE's logits.

    a^2 = 1 + 2 ln(1 + |delta| / tau): for normal logits, the attention on [t, 2t] and that entropy
    do not grow or vanish with t.
    """

    tau: float = option(10.0, float, above=0.0)

    @property
    def kind(self) -> str:  # noqa: D102
        return f"scale-invariant, {super().kind}"

    def gain(self, rows):  # noqa: D102
        return jnp.sqrt(1 - self.bias(rows, {}))

    def bias(self, rows, params):  # noqa: D102
        del params
        return -2 * jnp.log1p(jnp.abs(rows.delta).astype(jnp.float32) / self.tau)


OPEN = 4.0  # where a forget gate's logit starts: it keeps 0.982 a token


@dataclasses.dataclass(frozen=True)
class Forgetting(Position):
    """Forget gates (arXiv 2503.02130): bias ln f_(j+1) + ... + ln f_i, no rotation. Causal only.

    f_t = sigmoid(w_h . x_t + b_h) of the layer's input x; w and b are learned per head, w from 0
    and b from 4 (ours).
    """

    trained_kind: ClassVar[str] = "forgetting"
    causal_only: ClassVar[bool] = True

    def init_gates(self, num_heads: int, width: int) -> Params:  # noqa: D102
        return {
            "kernel": jnp.zeros((width, num_heads), jnp.float32),
            "bias": jnp.full((num_heads,), OPEN, jnp.float32),
        }

    def gates(self, params, x, before):  # noqa: D102
        logits = jnp.einsum("btd,dn->btn", x, params["kernel"], precision=jax.lax.Precision.HIGHEST)
        kept = jax.nn.log_sigmoid(logits + params["bias"][None, None])
        if before is None:
            zeros = jnp.zeros((kept.shape[0], 1, kept.shape[2]), jnp.float32)
            before = {"high": zeros, "low": zeros}
        high, low = running_sum(kept, (before["high"], before["low"]))
        sums = {"high": high, "low": low}
        return sums, sums

    def bias(self, rows, params):  # noqa: D102
        del params
        q, k = rows.q_gates["position"], rows.kv_gates["position"]
        return differences(q["high"], k["high"]) + differences(q["low"], k["low"])
