"""InfoScale's table: what is left of a model at up to 64 times its training length, by method.

A GAU trained at L = 64 as a masked language model (arXiv 2501.08570, section 4). Methods that want
no training are evaluated on the weights trained with softmax; softmax_plus, CosScale, ALiBi and
PoSE have weights of their own, of equal tokens, steps and seeds.
"""

from experiments.runs import Run, over_seeds
from experiments.sizes import encoder, with_changes

TRAINING_FREE = (
    "softmax",
    "log_length",
    "infoscale",
    "entropy_matched",
    "pi",
    "ntk",
    "yarn",
    "yarn+infoscale",
    "streaming_llm",
    "lm_infinite",
    "windowed",
    "rerope",
    "rerope_log",
    "rerope+infoscale",
)


def runs(size: str) -> list[Run]:
    """Six trainings a seed."""
    config, seeds = encoder(size)
    length = config.data.train_length
    longest = max(int(n) for n in config.eval.lengths.split(","))
    found = over_seeds(
        "softmax", with_changes(config, model__method="softmax"), TRAINING_FREE, seeds
    )
    for method, rows in (
        ("softmax_plus", ("softmax_plus",)),
        ("cosscale", ("cosscale", "infoscale_cosscale")),
        ("cosscale(cos_scale=16)", ("cosscale(cos_scale=16)", "cosscale(cos_scale=16)+infoscale")),
        ("alibi", ("alibi",)),
    ):
        found += over_seeds(method, with_changes(config, model__method=method), rows, seeds)
    scale = longest // length
    for name, method in (("pose", "softmax"), ("pose+pi", f"pi(scale={scale})")):
        changed = with_changes(
            config, model__method=method, data__positions="pose", data__target_length=longest
        )
        found += over_seeds(name, changed, {name: method}, seeds)
    return found
