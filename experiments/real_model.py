"""A real model beyond its length: SmolLM2-135M-Instruct, trained at 8192 tokens, by method.

Nothing is trained here: the weights are those that `make smollm2` imports from llama.cpp's form,
and methods that want no training are evaluated on them. Documents are packages of Python's standard
library, which such a model will have read; what tells of its length is how a method's loss changes
with the length, and not the loss itself.
"""

from pathlib import Path

from experiments.sizes import check_size, few_at_smoke
from lenext.config import to_config
from lenext.errors import UserError
from lenext.reporting.pictures import plot
from lenext.reporting.tables import (
    MARKS,
    difference,
    metric_table,
    page,
    provenance_notes,
    select,
)
from lenext.sweeps.experiment import Content, Experiment
from lenext.sweeps.runs import Run
from lenext.workdirs.workdir import read_run_config

WORKDIR = Path("runs/smollm2")
METHODS = (
    "trained",
    "trained+infoscale",
    "yarn",
    "rerope(window=4096)",
    "rerope(window=4096)+infoscale",
    "self_extend(window=2048,group=8)",
    "lm_infinite(window=4096)",
    "trained+log_length",
    "ntk",
    "pi",
)


def runs(size: str) -> list[Run]:
    """The one model, at up to twice its length; on accelerators with more documents."""
    check_size(size)
    stored = read_run_config(WORKDIR)
    if stored is None:
        raise UserError(f"{WORKDIR}: holds no model; `make smollm2` fetches and imports it")
    config = to_config(stored)
    lengths, documents = ("256", 1) if size == "smoke" else ("2048,8192,16384", 3)
    longest = int(lengths.rpartition(",")[2])
    tokens = longest * documents // 2  # so that at the longest length a document has one crop
    if size in ("gpu", "paper"):
        documents, tokens = 24, 24 * longest
    config.data.dataset = "stdlib_packages"
    config.eval.update(
        lengths=lengths, documents=documents, tokens=tokens, batch_tokens=longest,
        protocol="full_context", split="validation",
    )  # fmt: skip
    rows = {method: method for method in few_at_smoke(size, METHODS, 3)}
    return [Run("SmolLM2-135M-Instruct", config, rows, imported=WORKDIR)]


def report(content: Content) -> dict[str, str | bytes]:
    """The table of loss, and how it differs from the model's own method; a picture of the loss."""
    records, length = content["records"], content["config"]["data"]["train_length"]
    title = f"SmolLM2-135M-Instruct, trained at {length} tokens, by what its attention is replaced"
    sections = [
        ("loss in nats (lower is better)", metric_table(records, "loss")),
        ("loss less that of `trained`", metric_table(records, "loss", difference)),
    ]
    return {
        ".md": page(title, sections, [MARKS, *provenance_notes(content)]),
        ".png": plot(select(records, metric="loss"), "loss", length, title),
    }


EXPERIMENT = Experiment(
    name="real_model",
    runs=runs,
    baseline="trained",
    metrics=("loss", "entropy", "dilution", "max_logit"),
    report=report,
)
