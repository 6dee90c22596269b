"""The reference's weightings: rows of logits to weights, in plain float64 NumPy."""

import math

import numpy as np

FIRST_STAGES = {
    "softplus": "softplus",
    "reweighted": "softplus",
    "reweighted_softmax": "exp",
    "reweighted_sigmoid": "sigmoid",
}
# Weightings whose rows sum to 1.
NORMALISED = {"softmax", "adaptive", "sparsemax", "entmax", *FIRST_STAGES}


def weighting(axes, logits, seen, n, dim, length, delta, learned):
    """Weights [B, N, T, S] from complete rows; zero where unseen, and all zero in an empty row.

    `length` is L, `delta` holds distances [B, T, S], `learned` the weighting's learned parts.
    """
    kind, options = axes["weighting"]
    seen = np.broadcast_to(seen[:, None], logits.shape)
    n = np.maximum(n, 1)[:, None, :, None]
    if kind == "sigmoid":
        less = np.log(n) if options.get("bias") == "row" else np.log(length)
        return np.where(seen, 1 / (1 + np.exp(-(logits - less))), 0)
    if kind == "stick_breaking":
        return stick_breaking(logits, seen & (delta > 0)[:, None], delta)
    if kind == "relu":
        return np.where(seen, np.maximum(logits, 0) / n, 0)
    if kind == "adaptive":
        first = softmax(logits, seen)
        h = -np.sum(first * np.log(np.where(first > 0, first, 1)), axis=-1, keepdims=True)
        factor = -0.037 * h**4 + 0.481 * h**3 - 2.3 * h**2 + 4.917 * h - 1.791
        logits = np.where(h > 0.5, np.maximum(factor, 1), 1) * logits
    if kind == "relu2":
        if options.get("gau", False):
            return np.where(seen, np.maximum(logits * np.sqrt(dim) / n, 0) ** 2, 0)
        return np.where(seen, np.maximum(logits, 0) ** 2 / n, 0)
    if kind in ("softmax1", "softmax_sink"):
        # A softmax over one column more, which is then dropped.
        sink = np.zeros(logits.shape[1]) if learned is None else learned["sink"]
        column = np.broadcast_to(sink[None, :, None, None], (*logits.shape[:3], 1))
        wider = np.concatenate([logits, column], axis=-1)
        visible = np.concatenate([seen, np.ones_like(column, bool)], axis=-1)
        return softmax(wider, visible)[..., :-1]
    if kind in ("sparsemax", "entmax"):
        return entmax(logits, seen, options.get("alpha", 1.5) if kind == "entmax" else 2)
    if kind in ("softmax", "adaptive"):
        return softmax(logits, seen)
    phi = options.get("phi", FIRST_STAGES[kind])
    weights = softmax(logits, seen) if phi == "exp" else np.where(seen, PHIS[phi](logits), 0)
    weights = normalise(weights) if options.get("norm", "l1") == "l1" else weights / n
    if kind.startswith("reweighted"):
        offset = np.where(n <= 3, 0, options.get("offset", 1.0))
        above = weights * n - offset
        # Equal weights are 1/n up to rounding; a row with nothing above its offset keeps them.
        above = np.where(seen & (above > 1e-12), above, 0)
        top = np.max(above, axis=-1, keepdims=True)
        ratio = np.where(above > 0, np.log(np.where(above > 0, above, 1)), -np.inf)
        ratio -= np.log(np.where(top > 0, top, 1))
        sharper = normalise(np.exp(options.get("power", 15.0) * ratio))
        weights = np.where(top > 0, sharper, weights)
    return weights


PHIS = {
    "softplus": lambda x: np.logaddexp(0, x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": lambda x: np.exp(-np.logaddexp(0, -x)),
    # GELU's least value, at x = -0.7518.
    "gelu_shifted": lambda x: x * (1 + ERF(x / np.sqrt(2))) / 2 + 0.16997120747990369,
}
ERF = np.vectorize(math.erf, otypes=[float])


def softmax(logits, seen):
    """exp over its sum, where seen."""
    top = np.max(np.where(seen, logits, -np.inf), axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    return normalise(np.where(seen, np.exp(np.where(seen, logits - top, 0)), 0))


def entmax(logits, seen, alpha):
    """relu((alpha - 1) logit - tau)^(1 / (alpha - 1)), by bisection: tau lies within 1 of the top.

    alpha = 2 is sparsemax.
    """
    top = np.max(np.where(seen, logits, -np.inf), axis=-1, keepdims=True)
    z = np.where(seen, (alpha - 1) * (logits - np.where(np.isfinite(top), top, 0)), -np.inf)
    low, high = np.full(top.shape, -1.0), np.zeros(top.shape)
    for _ in range(60):
        tau = (low + high) / 2
        total = np.sum(np.maximum(z - tau, 0) ** (1 / (alpha - 1)), axis=-1, keepdims=True)
        low, high = np.where(total > 1, tau, low), np.where(total > 1, high, tau)
    return np.maximum(z - high, 0) ** (1 / (alpha - 1))


def normalise(weights):
    """Each row divided by its sum; a row of zeros stays."""
    total = np.sum(weights, axis=-1, keepdims=True)
    return weights / np.where(total > 0, total, 1)


def stick_breaking(logits, seen, delta):
    """From the nearest key outwards: each takes sigmoid(logit) of what is left of the row."""
    order = np.argsort(np.broadcast_to(delta[:, None], logits.shape), axis=-1, kind="stable")
    share = np.where(seen, 1 / (1 + np.exp(-logits)), 0)
    share = np.take_along_axis(share, order, axis=-1)
    weights, left = np.zeros_like(share), np.ones(share.shape[:-1])
    for key in range(share.shape[-1]):
        weights[..., key] = share[..., key] * left
        left = left - weights[..., key]
    return np.take_along_axis(weights, np.argsort(order, axis=-1), axis=-1)
