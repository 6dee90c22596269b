"""CosScale's c from 4 to 512, with and without InfoScale: does a large c act as a window?

A GAU a value of c, of equal tokens, steps and seeds (arXiv 2501.08570), evaluated at up to 64 times
its training length: accuracy, row entropy, and the window that holds 90 % of a row's weight.
"""

from pathlib import Path
from typing import Any

from experiments.cosscale_pictures import draw_scales
from experiments.sizes import encoder, few_at_smoke, with_changes
from experiments.windows import (
    DOCUMENTS,
    SHARE,
    effective_window,
    share_by_distance,
    validation_crops,
)
from lenext.attention import make_method
from lenext.models import attention_maps, with_method
from lenext.reporting.tables import (
    MARKS,
    accuracy_and_loss,
    markdown_table,
    metric_table,
    page,
    provenance_notes,
    with_interval,
)
from lenext.sweeps.experiment import Content, Experiment
from lenext.sweeps.runs import Run, over_seeds
from lenext.workdirs.pretrained import load_run

# First those that size smoke takes.
SCALES = (16, 4, 8, 32, 64, 128, 256, 512)
STEPS = 400  # of size cpu, a third of the size's own
KEPT = 16  # the c whose weights are also looked at under every other c


def method_of(scale: int) -> str:
    """The method's name, with its c."""
    return f"cosscale(cos_scale={scale})"


def runs(size: str) -> list[Run]:
    """Softmax, and a training a value of c."""
    config, seeds = encoder(size)
    if size == "cpu":
        config.training.steps = STEPS
    found = over_seeds("softmax", with_changes(config, model__method="softmax"),
                       ("softmax", "infoscale"), seeds)  # fmt: skip
    for method in map(method_of, sorted(few_at_smoke(size, SCALES, 2))):
        rows = (method, f"{method}+infoscale")
        found += over_seeds(method, with_changes(config, model__method=method), rows, seeds)
    return found


def windows(run: Run, workdir: Path) -> dict[str, Any]:
    """Where the weight lies in the first seed's models: by distance, and the window of 90 %.

    "kept" are the windows of the weights trained at c = `KEPT`, under every c.
    """
    if run.seed != 0:
        return {}
    trained = load_run(workdir)
    tokens = validation_crops(run.config)
    share = share_by_distance(attention_maps(trained.model, tokens))
    found: dict[str, Any] = {
        "window_length": tokens.shape[1],
        "share_by_distance": share.tolist(),
        "window": effective_window(share),
    }
    if run.name == method_of(KEPT):
        length = run.config.data.train_length
        found["kept"] = {
            name: effective_window(share_by_distance(attention_maps(
                with_method(trained.model, make_method(name, train_length=length)), tokens
            )))
            for name in map(method_of, sorted(SCALES))
        }  # fmt: skip
    return found


def report(content: Content) -> dict[str, str | bytes]:
    """Accuracy, loss and entropy by c and length, the windows, and a picture."""
    records, train_length = content["records"], content["config"]["data"]["train_length"]
    model = content["config"]["model"]
    title = (
        f"CosScale, c·cos(q, k), in a GAU of {model['num_layers']} layers trained at {train_length}"
    )
    looked_at = {run["name"]: run for run in content["runs"] if "window" in run}
    kept = looked_at[method_of(KEPT)]["kept"]
    rows = [
        [name, *(" / ".join(map(str, found)) for found in (run["window"], kept.get(name, ["–"])))]
        for name, run in looked_at.items()
    ]
    length = next(iter(looked_at.values()))["window_length"]
    headings = ["trained with", f"window at {length}", f"weights of c = {KEPT} under it"]
    sections = [
        *accuracy_and_loss(records),
        ("entropy (nats)", metric_table(records, "entropy", with_interval)),
        (f"window of {SHARE:.0%} of the weight, by layer", markdown_table(headings, rows)),
    ]
    notes = [
        MARKS,
        f"Window: keys at |Δ| < window hold {SHARE:.0%} of the weight, by the mean over all "
        f"rows of {DOCUMENTS} documents, of the first seed's models.",
        *provenance_notes(content),
    ]
    scales = {method_of(c): c for c in sorted(SCALES) if method_of(c) in looked_at}
    return {
        ".md": page(title, sections, notes),
        ".png": draw_scales(content, scales, KEPT, title),
    }


EXPERIMENT = Experiment(
    name="cosscale_sweep",
    runs=runs,
    baseline="softmax",
    metrics=("accuracy", "loss", "entropy"),
    report=report,
    details=windows,
)
