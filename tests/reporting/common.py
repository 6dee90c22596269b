"""What tests of tables and pictures share."""


def record(method, length, value, metric="accuracy", unsuited=(), positions=None, **more):
    """A record of a sweep, as of `lenext.evaluation`."""
    return {
        "method": method, "length": length, "metric": metric, "positions": positions,
        "value": value,
        "interval": [value - 0.01, value + 0.01], "difference": 0.0,
        "difference_interval": [-0.125, 0.125], "protocol": "mlm15", "documents": 1024 // length,
        "sequences": 20, "tokens": 20 * length, "predictions": 3 * length, "seconds": 0.5,
        "compile_seconds": 1.5, "peak_bytes": 1000, "unsuited": list(unsuited),
    } | more  # fmt: skip
