"""What the entmax package of its authors computes, for test_golden.py.

    python -m tests.attention.golden.make_entmax

writes entmax.json beside this file. Needs torch and entmax, which lenext does not.
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_name("entmax.json")
ALPHAS = [1.2, 1.5, 2.0, 3.0]


def compute() -> list[dict]:
    """Rows of logits, their weights, and the gradient of the weights' product with a cotangent."""
    import torch
    from entmax import entmax_bisect

    rng = np.random.default_rng(0)
    out = []
    for alpha in ALPHAS:
        for size, spread in [(1, 1.0), (5, 1.0), (40, 3.0)]:
            logits = torch.tensor(rng.normal(size=size) * spread, requires_grad=True)
            cotangent = torch.tensor(rng.normal(size=size))
            weights = entmax_bisect(logits, alpha, n_iter=80)
            (weights * cotangent).sum().backward()
            kept = {"logits": logits, "cotangent": cotangent, "weights": weights}
            kept["gradient"] = logits.grad
            out.append({"alpha": alpha} | {name: x.tolist() for name, x in kept.items()})
    return out


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=1) + "\n")
