"""The methods once more, in plain float64 NumPy: what the tests compare `lenext.attention` with.

Written from the papers' formulas and not from the package, so it takes other routes on purpose:
a pair of dimensions is scored by the angle of its *distance* (nothing is ever rotated), a method is
a dict, every array is complete [B, N, T, S], and the power of LSSAR runs in logarithms.
"""

import math
import re
from typing import Any

import numpy as np

from tests.attention.reference_weighting import weighting
from tests.attention.stand_ins import stand_in

# Each name is the axes in which it differs from softmax (RoPE, dot product, no temperature).
METHODS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax_plus": {"temperature": "softmax_plus"},
    "log_length": {"temperature": "log_length"},
    "entropy_matched": {"temperature": "entropy_matched"},
    "infoscale": {"temperature": "infoscale"},
    "ssmax": {"temperature": "ssmax"},
    "ssa": {"temperature": "ssa"},
    "llama4": {"temperature": "llama4"},
    "mistral3": {"temperature": "mistral3"},
    "cosscale": {"similarity": "cosine"},
    "infoscale_cosscale": {"temperature": "infoscale", "similarity": "cosine"},
    "lssa": {"temperature": "lssa", "similarity": "unit", "weighting": "softplus"},
    "lssar": {"temperature": "lssa", "similarity": "unit", "weighting": "reweighted"},
    "sigmoid": {"weighting": "sigmoid"},
    "entmax": {"weighting": "entmax"},
    "asentmax": {"weighting": "entmax", "temperature": "asentmax"},
    "softmax_sink": {"weighting": "softmax_sink"},
    "stick_breaking": {"weighting": "stick_breaking", "position": "none"},
    "relu": {"weighting": "relu"},
    "reweighted_softmax": {"weighting": "reweighted_softmax"},
    "reweighted_sigmoid": {"weighting": "reweighted_sigmoid"},
    "relu2": {"weighting": "relu2"},
    "softmax1": {"weighting": "softmax1"},
    "sparsemax": {"weighting": "sparsemax"},
    "soft": {"similarity": "soft"},
    "adaptive": {"weighting": "adaptive"},
    "pi": {"position": "pi"},
    "ntk": {"position": "ntk"},
    "yarn": {"position": "yarn"},
    "dynamic_ntk": {"position": "dynamic_ntk"},
    "llama3": {"position": "llama3"},
    "longrope": {"position": "longrope"},
    "leaky_rerope": {"position": "leaky"},
    "self_extend": {"position": "grouped"},
    "streaming_llm": {"position": "cache", "visibility": "cache"},
    "rerope": {"position": "clamped"},
    "dual_chunk": {"position": "dual_chunk"},
    "t5_bias": {"position": "t5_bias"},
    "forgetting": {"position": "forgetting"},
    "chunked": {"visibility": "chunks"},
    "rerope_log": {"position": "clamped", "temperature": "log_length"},
    "alibi": {"position": "alibi"},
    "nope": {"position": "none"},
    "p_rope": {"position": "p_rope"},
    "kerple_log": {"position": "kerple_log"},
    "fire": {"position": "fire"},
    "scale_invariant": {"position": "scale_invariant"},
    "windowed": {"visibility": "window"},
    "lm_infinite": {"position": "clamped", "visibility": "sinks_and_window"},
}


def number(text: str) -> float:
    """An option's value; True and False are 1 and 0."""
    return {"True": 1.0, "False": 0.0}[text] if text in ("True", "False") else float(text)


def spec(method: str, **shared: Any) -> dict[str, Any]:
    """Read "rerope(window=32)+infoscale" to one dict of axes, each as (kind, its options)."""
    plain = {
        "position": "rope",
        "similarity": "dot",
        "temperature": "one",
        "weighting": "softmax",
        "visibility": "all",
    }
    axes: dict[str, Any] = {}
    for part in method.split("+"):
        name, inside = re.fullmatch(r"(\w+)(?:\((.*)\))?", part.strip()).groups()
        own = dict(item.split("=") for item in inside.split(",")) if inside else {}
        options = shared | {key.strip(): number(value) for key, value in own.items()}
        chosen = METHODS[name] if axes else plain | METHODS[name]
        axes |= {axis: (kind, options) for axis, kind in chosen.items()}
    return axes


def yarn_frequencies(dim: int, base: float, scale: float, length: int) -> np.ndarray:
    """NTK by parts, [H/2]: pairs that turn more than 32 times in `length` stay, under 1 shrink."""

    def pair_of(turns):
        return dim * np.log(length / (2 * np.pi * turns)) / (2 * np.log(base))

    low = np.clip(np.floor(pair_of(32)), 0, dim - 1)
    high = np.clip(np.ceil(pair_of(1)), 0, dim - 1)
    if low == high:
        high += 0.001  # as in the authors' code: a step instead of 0/0
    out = np.empty(dim // 2)
    for p in range(dim // 2):
        ramp = min(max((p - low) / (high - low), 0.0), 1.0)
        plain = base ** (-2 * p / dim)
        out[p] = plain / scale * ramp + plain * (1 - ramp)
    return out


def llama3_frequencies(dim: int, base: float, scale: float, length: int) -> np.ndarray:
    """By wavelength, as in Meta's code: below L/4 kept, above L over s, and smoothly between."""
    out = np.empty(dim // 2)
    for p in range(dim // 2):
        plain = base ** (-2 * p / dim)
        wavelength = 2 * np.pi / plain
        smooth = (length / wavelength - 1) / (4 - 1)
        out[p] = (1 - smooth) * plain / scale + smooth * plain
        if wavelength < length / 4:
            out[p] = plain
        if wavelength > length:
            out[p] = plain / scale
    return out


def dynamic_base(base: float, dim: int, scale: float, keys: int, length: int) -> float:
    """Dynamic NTK's base for so many keys."""
    return base * (scale * max(keys, length) / length - (scale - 1)) ** (dim / (dim - 2))


def alibi_slopes(heads: int) -> np.ndarray:
    """Press et al.'s slopes [N]; between powers of two, every other slope of the next power."""
    power = 2 ** int(np.floor(np.log2(heads)))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)][: heads - power]
    return np.array(slopes)


def infoscale(n: np.ndarray, dim: int, length: int) -> np.ndarray:
    """sqrt((1 - n^(-2/H)) / (1 - L^(-2/H))), not clamped."""
    return np.sqrt((1 - n ** (-2 / dim)) / (1 - length ** (-2 / dim)))


def positions_2d(positions, batch: int, length: int, default: np.ndarray) -> np.ndarray:
    """Positions as [B, length], from [length], [B, length] or nothing."""
    chosen = default if positions is None else np.asarray(positions)
    return np.broadcast_to(chosen, (batch, length)).astype(np.float64)


def documents(q_pos, k_pos, kv_mask=None, q_segments=None, kv_segments=None):
    """Which key j is a token of query i's document, [B, T, S]."""
    document = np.ones((*q_pos.shape, k_pos.shape[1]), bool)
    if kv_mask is not None:
        document &= np.asarray(kv_mask, bool)[:, None, :]
    if q_segments is not None:
        document &= np.asarray(q_segments)[:, :, None] == np.asarray(kv_segments)[:, None, :]
    return document


def starts(q_pos, k_pos, *ids):
    """Where each query's document starts, [B, T, 1]: at its first real token.

    The same document must give the same output with padding before it, or in the midst of a pack.
    """
    inside = np.where(documents(q_pos, k_pos, *ids), k_pos[:, None, :], np.inf)
    start = np.min(inside, axis=-1, keepdims=True)
    return np.where(np.isfinite(start), start, 0)


def visible(axes, length, q_pos, k_pos, causal, *ids):
    """Which key j each query i sees, [B, T, S]."""
    delta = q_pos[:, :, None] - k_pos[:, None, :]
    document = documents(q_pos, k_pos, *ids)
    seen = document & (delta >= 0) if causal else document
    kind, options = axes["visibility"]
    place = q_pos[:, :, None] - starts(q_pos, k_pos, *ids)
    if kind == "chunks":
        size = options.get("chunk", length)
        seen = seen & (place // size == (place - delta) // size)
    elif kind != "all":
        window = length - options.get("sinks", 4) if kind == "cache" else length
        near = np.abs(delta) < options.get("window", window)
        kind = kind.replace("cache", "sinks_and_window")
        if kind == "sinks_and_window":
            near |= k_pos[:, None, :] - starts(q_pos, k_pos, *ids) < options.get("sinks", 4)
        seen = seen & near
    return seen


def remapped(kind, options, delta, q_place, k_place, length, keys):
    """The distance that RoPE turns by, [B, T, S], from the real one and places in the document.

    `keys` is how many tokens the document has.
    """
    sign, size = np.sign(delta), np.abs(delta)
    i, j = q_place[:, :, None], k_place
    if kind == "clamped":
        return sign * np.minimum(size, options.get("window", length))
    if kind == "leaky":
        window = options.get("window", length // 8)
        leak = options.get("leak", max(16, (keys - window) / (length - window)))
        return sign * np.where(size < window, size, window + (size - window) / leak)
    if kind == "grouped":
        window = options.get("window", length // 4)
        within = max(1, length - window)
        group = options.get("group", max(1, math.ceil((keys - window) / within)))
        beyond = i // group - j // group + sign * (window - window // group)
        return np.where(size < window, delta, beyond)
    if kind == "cache":
        sinks = options.get("sinks", 4)
        window = options.get("window", length - sinks)
        return np.where(j < sinks, sign * np.minimum(size, sinks + window - 1 - j), delta)
    if kind == "dual_chunk":
        chunk, local = options.get("chunk", 3 * length // 4), options.get("window", length // 8)
        stride = chunk - local
        near = np.minimum(i % stride + stride, chunk) - j % stride
        behind = i // stride - j // stride
        return np.where(behind == 0, delta, np.where(behind == 1, near, chunk - j % stride))
    return delta


def t5_bucket(distance, buckets, furthest):
    """T5's bucket of a distance, counted up from the definition, one distance at a time."""
    exact = buckets // 2
    if distance < exact:
        return distance
    bucket = exact
    while bucket < buckets - 1:
        # The next begins where exact (furthest / exact)^share is reached.
        share = (bucket + 1 - exact) / (buckets - exact)
        if distance < exact * (furthest / exact) ** share * (1 - 1e-12):
            break
        bucket += 1
    return bucket


def similarity(axes, q, k, delta, places, length, keys):
    """Position and similarity, [B, N, T, S], with k already repeated to N heads.

    `places` are those of queries [B, T] and keys [B, T, S] in the query's document.
    """
    size = q.shape[-1]
    kind, options = axes["position"]
    dim = int(options.get("rotary_dim", size))  # the first dimensions turn, as if they were all
    base = options.get("base", 10000.0)
    scale = options.get("scale", max(1.0, keys / length))
    magnitude = 1.0
    frequencies = np.array([base ** (-2 * p / dim) for p in range(dim // 2)])
    if kind == "pi":
        delta = delta / scale
    elif kind == "ntk":
        base = base * scale ** (dim / (dim - 2))
        frequencies = np.array([base ** (-2 * p / dim) for p in range(dim // 2)])
    elif kind == "yarn":
        frequencies = yarn_frequencies(dim, base, scale, length)
        magnitude = (0.1 * np.log(scale) + 1) ** 2
    elif kind == "dynamic_ntk":
        base = dynamic_base(base, dim, options.get("scale", 1.0), keys, length)
        frequencies = np.array([base ** (-2 * p / dim) for p in range(dim // 2)])
    elif kind == "llama3":
        frequencies = llama3_frequencies(dim, base, scale, length)
    elif kind == "longrope":
        frequencies = frequencies / np.array(options.get("factors", [scale] * (dim // 2)))
        magnitude = 1 + np.log(options.get("scale", 1.0)) / np.log(length)
    elif kind == "dual_chunk" and options.get("mscale"):
        magnitude = (0.05 * np.log(scale) + 1) ** 2
    elif kind == "t5_bias" and not options.get("scaled", True):
        magnitude = np.sqrt(size)
    elif kind in ("p_rope", "scale_invariant"):
        frequencies[math.floor(options.get("fraction", 0.75) * (dim // 2)) :] = 0
    if kind == "scale_invariant":
        tau = options.get("tau", 10.0)
        magnitude = np.sqrt(1 + 2 * np.log(1 + np.abs(delta) / tau))[:, None]
    delta = remapped(kind, options, delta, *places, length, keys)
    if (
        kind in ("none", "alibi", "kerple_log", "fire", "t5_bias", "forgetting")
        or options.get("position") == "none"
    ):
        delta = np.zeros_like(delta)

    sim_kind, sim_options = axes["similarity"]
    if sim_kind in ("dot", "soft"):
        factor = sim_options.get("logit_scale", 1 / np.sqrt(size))
    else:
        q = q / np.linalg.norm(q, axis=-1, keepdims=True)
        k = k / np.linalg.norm(k, axis=-1, keepdims=True)
        factor = 1 if sim_kind == "unit" else sim_options.get("cos_scale", 128.0)

    score = np.zeros((q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    for p in range(dim // 2):
        halves = options.get("pairing", "interleaved") == "halves"
        a, b = (p, p + dim // 2) if halves else (2 * p, 2 * p + 1)
        qa, qb, ka, kb = (
            x.transpose(0, 2, 1) for x in (q[..., a], q[..., b], k[..., a], k[..., b])
        )
        qa, qb, ka, kb = qa[..., None], qb[..., None], ka[:, :, None], kb[:, :, None]
        angle = (delta * frequencies[p])[:, None]
        score += np.cos(angle) * (qa * ka + qb * kb) + np.sin(angle) * (qa * kb - qb * ka)
    if dim < size:  # a gain is on what turns
        still = np.einsum("btnh,bsnh->bnts", q[..., dim:], k[..., dim:])
        return (magnitude * score + still) * factor
    if sim_kind == "soft":  # a rotation changes no norm
        score = score - (np.sum(q**2, -1).transpose(0, 2, 1)[..., None]) / 2
        score = score - (np.sum(k**2, -1).transpose(0, 2, 1)[:, :, None]) / 2
    return score * factor * magnitude


def bias(axes, delta, place, q, k, length, learned, causal):
    """The term on the logits, [B, N, T, S], or 0, from distances [B, T, S] and places [B, T].

    q [B, T, N, H] and k [B, S, N, H] are what gates follow here, see stand_ins.py.
    """
    kind, options = axes["position"]
    heads = q.shape[2]
    if kind == "forgetting":
        of_q, of_k = (
            sum(stand_in(name, x, heads) for name in ("high", "low")).transpose(0, 2, 1)
            for x in (q, k)
        )
        return of_q[..., None] - of_k[:, :, None]
    distance = np.abs(delta)[:, None]
    if kind == "t5_bias":
        buckets = int(options.get("buckets", 32)) // (1 if causal else 2)
        of_distance = np.vectorize(
            lambda d: t5_bucket(int(d), buckets, options.get("max_distance", 128))
        )
        bucket = of_distance(np.abs(delta)) + (0 if causal else buckets * (delta < 0))
        return learned["table"][bucket].transpose(0, 3, 1, 2)
    if kind == "alibi":
        return -alibi_slopes(heads)[None, :, None, None] * distance
    if kind == "scale_invariant":
        return -2 * np.log(1 + distance / options.get("tau", 10.0))
    if kind == "kerple_log":
        p, a = (np.exp(learned[name])[None, :, None, None] for name in ("log_p", "log_a"))
        return -p * np.log(1 + a * distance)
    if kind == "fire":
        c, threshold = np.abs(learned["c"]), np.abs(learned["threshold"]) * length
        span = np.maximum(place, threshold)[:, :, None]
        ratio = np.log(c * np.abs(delta) + 1) / np.log(c * span + 1)
        out = np.zeros((delta.shape[0], heads, *delta.shape[1:]))
        for head in range(heads):
            out[:, head] = learned["outer_bias"][head]
            for unit, weight in enumerate(learned["outer"][:, head]):
                unit_in = learned["inner"][unit] * ratio + learned["inner_bias"][unit]
                out[:, head] += weight * np.maximum(unit_in, 0)
        return out
    return 0


def temperature(axes, n, place, q, length, learned):
    """The factor of each row, broadcastable to [B, N, T, 1].

    From its visible count and its place in its document, both [B, T], and q [B, T, N, H].
    """
    kind, options = axes["temperature"]
    dim = q.shape[-1]
    place = np.maximum(place, 0)[:, None, :, None]  # padding before a document stands at its start
    n = np.maximum(n, 1)[:, None, :, None]  # a row that sees nothing has no use for a factor
    if kind == "one":
        return np.ones_like(n)
    if kind == "softmax_plus":
        return np.log(n) / np.log(512)
    if kind == "lssa":  # both logarithms go together: in a composition neither is of use alone
        return np.log(dim) * np.log(n)
    if kind == "ssmax":
        return learned["slope"][None, :, None, None] * np.log(n)
    if kind == "ssa":
        tokens = np.stack([q[:, :, h] @ learned["query"][h] for h in range(q.shape[2])], axis=1)
        of_length = np.exp(-np.exp(learned["beta"])) * np.log(n)
        return 1 + of_length + np.tanh(tokens)[..., None]
    if kind == "asentmax":
        beta, gamma = (
            stand_in(name, q, q.shape[2]).transpose(0, 2, 1)[..., None]
            for name in ("beta", "gamma")
        )
        return options.get("delta", 1) + beta * np.log(n + 1) ** gamma
    if kind == "llama4":
        return 1 + options.get("beta", 0.1) * np.log(1 + (place + 1) // options.get("floor", 8192))
    if kind == "mistral3":
        return 1 + options.get("beta", 0.1) * np.log(1 + place // length)
    if kind == "entropy_matched":
        # From knot to knot: L, 2 L, 8 L, 32 L, and far beyond.
        knots, far = np.log([1, 2, 8, 32, 2**40]), np.log(n / length)
        square = np.ones((1, len(learned["slopes"]), 1, 1)) + 0 * far
        for head, slopes in enumerate(learned["slopes"]):
            at_knots = 1 + np.concatenate([[0], np.cumsum(slopes * np.diff(knots))])
            inside = np.interp(far[:, 0], knots, at_knots)
            before = 0 if options.get("clamp", True) else slopes[0] * np.minimum(far[:, 0], 0)
            square[:, head] = inside + before
        return np.sqrt(np.maximum(square, np.where(far > 0, 1 / 16, 0)))
    law = np.log(n) / np.log(length) if kind == "log_length" else infoscale(n, dim, length)
    return np.maximum(law, 1) if options.get("clamp", True) else law


def reference_rows(
    q,
    k,
    method,
    train_length,
    *,
    causal=False,
    q_positions=None,
    kv_positions=None,
    kv_mask=None,
    q_segment_ids=None,
    kv_segment_ids=None,
    params=None,
    **options,
):
    """Logits and weights [B, N, T, S], visibility [B, T, S] and counts n [B, T].

    q is [B, T, N, H], k [B, S, K, H]; `params` are learned parts by axis, as init_params gives them
    (needed where there are any); `options` go to every part.
    """
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    (batch, queries, heads, _), keys = q.shape, k.shape[1]
    k = np.repeat(k, heads // k.shape[2], axis=2)  # query head h reads key head h // (N / K)
    axes = spec(method, **options)
    q_pos = positions_2d(q_positions, batch, queries, np.arange(keys - queries, keys))
    k_pos = positions_2d(kv_positions, batch, keys, np.arange(keys))
    seen = visible(axes, train_length, q_pos, k_pos, causal, kv_mask, q_segment_ids, kv_segment_ids)
    n = seen.sum(axis=-1).astype(np.float64)
    learned = {
        axis: {name: np.asarray(x, np.float64) for name, x in values.items()}
        for axis, values in (params or {}).items()
    }
    delta = q_pos[:, :, None] - k_pos[:, None, :]
    start = starts(q_pos, k_pos, kv_mask, q_segment_ids, kv_segment_ids)
    place = q_pos - start[:, :, 0]
    factor = temperature(axes, n, place, q, train_length, learned.get("temperature"))
    logits = factor * similarity(
        axes, q, k, delta, (place, k_pos[:, None, :] - start), train_length, keys
    )
    if "softcap" in axes["similarity"][1]:
        cap = axes["similarity"][1]["softcap"]
        logits = cap * np.tanh(logits / cap)
    term = bias(axes, delta, place, q, k, train_length, learned.get("position"), causal)
    logits += term * (factor if axes["temperature"][1].get("scales_bias") else 1)
    made = weighting(
        axes, logits, seen, n, q.shape[-1], train_length, delta, learned.get("weighting")
    )
    return logits, made, seen, n


def reference_weights(q, k, method, train_length, **kwargs):
    """Weights [B, N, T, S]; see `reference_rows`."""
    return reference_rows(q, k, method, train_length, **kwargs)[1]


def reference_attend(q, k, v, method, train_length, **kwargs):
    """Output [B, T, N, Hv] of v [B, S, K, Hv]; see `reference_rows`."""
    return weighted_sums(reference_weights(q, k, method, train_length, **kwargs), v)


def weighted_sums(weights, v):
    """Output [B, T, N, Hv] of weights [B, N, T, S] and v [B, S, K, Hv]."""
    v = np.repeat(np.asarray(v, np.float64), weights.shape[1] // v.shape[2], axis=2)
    return np.einsum("bnts,bsnh->btnh", weights, v)
