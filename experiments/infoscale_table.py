"""InfoScale's table: what is left of a model at up to 64 times its training length, by method.

A GAU trained at L = 64 as a masked language model (arXiv 2501.08570). Methods that want no
training are evaluated on the weights trained with softmax; softmax_plus, CosScale, ALiBi and PoSE
have weights of their own, of equal tokens, steps and seeds.
"""

from experiments.sizes import encoder, few_at_smoke, with_changes
from lenext.reporting.pictures import plot
from lenext.reporting.tables import (
    MARKS,
    accuracy_and_loss,
    lengths,
    page,
    provenance_notes,
    select,
)
from lenext.sweeps.experiment import Content, Experiment
from lenext.sweeps.runs import Run, over_seeds

# All but dual_chunk, which is defined for causal models only.
TRAINING_FREE = (
    "softmax",
    "infoscale",
    "entropy_matched",
    "log_length",
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
    "leaky_rerope",
    "self_extend",
)
TRAINED = {
    "cosscale(cos_scale=16)": ("cosscale(cos_scale=16)", "cosscale(cos_scale=16)+infoscale"),
    "softmax_plus": ("softmax_plus",),
    "cosscale": ("cosscale", "infoscale_cosscale"),
    "alibi": ("alibi",),
}
"""What is trained beside softmax, and the methods that its weights are evaluated under."""


def softmax_runs(size: str) -> list[Run]:
    """Trained with softmax, evaluated under all that want no training."""
    config, seeds = encoder(size)
    methods = few_at_smoke(size, TRAINING_FREE, 3)
    return over_seeds("softmax", with_changes(config, model__method="softmax"), methods, seeds)


def runs(size: str) -> list[Run]:
    """Seven trainings a seed."""
    config, seeds = encoder(size)
    length = config.data.train_length
    longest = max(int(n) for n in config.eval.lengths.split(","))
    found = softmax_runs(size)
    for method, rows in few_at_smoke(size, list(TRAINED.items()), 1):
        found += over_seeds(method, with_changes(config, model__method=method), rows, seeds)
    scale = longest // length
    poses = (("pose+pi", f"pi(scale={scale})"), ("pose", "softmax"))
    for name, method in few_at_smoke(size, poses, 1):
        changed = with_changes(
            config, model__method=method, data__positions="pose", data__target_length=longest
        )
        found += over_seeds(name, changed, {name: method}, seeds)
    return found


def report(content: Content) -> dict[str, str | bytes]:
    """The table of all methods, and a picture of accuracy by length."""
    records, train_length = content["records"], content["config"]["data"]["train_length"]
    model = content["config"]["model"]
    title = (
        f"GAU of {model['num_layers']} layers trained at {train_length} tokens, at up to "
        f"{max(lengths(records)) // train_length} times that"
    )
    accuracy = select(records, metric="accuracy")
    return {
        ".md": page(title, accuracy_and_loss(records), [MARKS, *provenance_notes(content)]),
        ".png": plot(accuracy, "accuracy", train_length, title),
    }


EXPERIMENT = Experiment(
    name="infoscale_table",
    runs=runs,
    baseline="softmax",
    metrics=("accuracy", "loss", "entropy", "dilution", "gap_scale", "max_logit"),
    report=report,
)
