"""What length does to attention: maps, entropy by layer, and whether CosScale acts as a window.

    python -m experiments.attention_maps --runs=runs --results=experiments/results

Trains what is missing (or resumes it under --runs): the quickstart's model, and the same model for
400 steps with softmax and with CosScale at c = 8 … 256, of equal steps, tokens and seed. Calibrates
entropy_matched if it is not. Writes attention_maps.json (the numbers behind all curves) and .md,
and three pictures:

attention_maps.png       weights of one validation document's middle rows, by layer and method
entropy_by_length.png    mean row entropy and dilution of each layer
cosscale_window.png      weight by distance, the window that holds 90 % of it, entropy, loss

It took 75 minutes on two CPU cores, at low priority beside other work, half of it training.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from configs.quickstart import get_config
from experiments import attention_pictures as pictures
from lenext.attention import make_method
from lenext.config import Config, plain, read_methods
from lenext.data import get_tokenizer, open_split
from lenext.evaluation import evaluate
from lenext.evaluation.protocols import Sampling, get_protocol
from lenext.files import write_atomically
from lenext.models import attention_maps, with_method
from lenext.models.calibration import under_method
from lenext.models.pretrained import Pretrained, load_run
from lenext.provenance import provenance
from lenext.training import train

METHODS = (
    "softmax",
    "infoscale",
    "log_length",
    "rerope",
    "rerope+log_length",
    "rerope+entropy_matched",
    "lm_infinite",
)
SCALES = (8, 16, 32, 64, 128, 256)
KEPT = 16  # the c whose weights are also looked at under every other c
STEPS = 400
LONGER = 4  # lengths that are looked into, over the training length
DOCUMENTS = 8  # whose weights by distance are averaged
SHARE = 0.9  # of a row's weight, in its effective window


class Trained(NamedTuple):
    """A run, and how it does at every length.

    Attributes:
      run: the model and where it comes from.
      records: accuracy and loss, of the evaluation.
      heads: of the evaluation, by method, length, layer and head.
    """

    run: Pretrained
    records: list[dict[str, Any]]
    heads: list[dict[str, Any]]


def cosscale(scale: float) -> str:
    """The method's name, with its c."""
    return f"cosscale(cos_scale={scale})"


def train_all(runs: Path, size: str) -> tuple[Trained, dict[str, Trained]]:
    """Trains and evaluates what is missing.

    Args:
      runs: holds a workdir for each run.
      size: of `configs/quickstart.py`: "" or "smoke".

    Returns:
      The quickstart's model under all `METHODS`; and by method those trained with it for `STEPS`.
    """
    suffix = f"_{size}" if size else ""
    quickstart = _train(get_config(size), runs / f"quickstart{suffix}", METHODS)
    names = {"softmax": "softmax"} | {cosscale(c): f"cosscale_{c}" for c in SCALES}
    others = {}
    for method, name in names.items():
        config = get_config(size)
        config.model.method = method
        config.training.steps = min(config.training.steps, STEPS)
        others[method] = _train(config, runs / f"{name}_{STEPS}{suffix}", [method])
    return quickstart, others


def _train(config: Config, workdir: Path, methods: Sequence[str]) -> Trained:
    train(config, workdir)
    run = load_run(workdir)
    patterns = [read_methods(name, config.data.train_length) for name in methods]
    missing = any(under_method(run, workdir, pattern)[1] for pattern in patterns)
    config.eval.methods = ",".join(methods)
    records = evaluate(config, workdir, calibrate_first=missing)
    records = [record for record in records if record["metric"] in ("accuracy", "loss")]
    heads = json.loads((workdir / "eval" / "results.json").read_text())["heads"]
    return Trained(run, records, heads)


def validation_crops(config: Config) -> np.ndarray:
    """Token ids [B, n], n = `LONGER` L, of a document each, masked as in the evaluation."""
    tokenizer = get_tokenizer(config.data.tokenizer)
    corpus = open_split(config.data, config.eval.split, tokenizer)
    protocol = get_protocol(config.eval.protocol, "masked_lm", "config.eval.protocol")
    sampling = Sampling(
        documents=DOCUMENTS, tokens=1, seed=config.eval.seed, mask_rate=config.data.mask_rate
    )
    length = LONGER * config.data.train_length
    return protocol.prepare(corpus, tokenizer, length, length, sampling).batch["tokens"]


def middle_rows(trained: Trained, workdir: Path, tokens: np.ndarray) -> list[pictures.Strip]:
    """Weights of the middle L rows of a document: alone, and in `LONGER` L under each method."""
    train_length = trained.run.config.data.train_length
    first = (tokens.shape[1] - train_length) // 2
    rows = np.arange(first, first + train_length)
    alone = attention_maps(trained.run.model, tokens[:1, rows])
    strips = [pictures.Strip(f"softmax,\n{train_length} bytes only", np.asarray(alone), first)]
    for name in METHODS:
        model, _ = under_method(trained.run, workdir, read_methods(name, train_length))
        maps = attention_maps(model, tokens[:1], rows=rows)
        strips.append(pictures.Strip(name.replace("+", "\n+"), np.asarray(maps), 0))
    return strips


def share_by_distance(
    maps: Float[Array | np.ndarray, "layers B N T T"],
) -> Float[np.ndarray, "layers T"]:
    """How much of a row's weight lies at each distance |Δ|, on both sides together.

    Means over rows, heads and sequences; a layer's shares sum to 1 where its weights do.
    """
    mean = np.asarray(maps, np.float64).mean(axis=(1, 2))
    place = np.arange(mean.shape[-1])
    distance = np.abs(place[:, None] - place).ravel()
    return np.stack([np.bincount(distance, weights=layer.ravel()) for layer in mean]) / len(place)


def effective_window(share: Float[np.ndarray, "layers T"]) -> list[int]:
    """By layer, the smallest w such that keys at |Δ| < w hold `SHARE` of the weight."""
    total = np.cumsum(share, axis=-1)
    return [int(np.argmax(layer >= SHARE * layer[-1])) + 1 for layer in total]


def scale_figures(others: dict[str, Trained], tokens: np.ndarray) -> dict[str, Any]:
    """Shares by distance and effective windows of models trained with each method.

    "kept" are the windows of the weights trained at c = `KEPT`, under every c.
    """
    share = {
        method: share_by_distance(attention_maps(trained.run.model, tokens))
        for method, trained in others.items()
    }
    kept, swapped = others[cosscale(KEPT)].run, {}
    for name in map(cosscale, SCALES):
        method = make_method(name, train_length=kept.config.data.train_length)
        swapped[name] = share_by_distance(attention_maps(with_method(kept.model, method), tokens))
    length = tokens.shape[1]
    uniform = share_by_distance(np.full((1, 1, 1, length, length), 1 / length))
    return {
        "length": length,
        "share_by_distance": {method: x.tolist() for method, x in share.items()},
        "window": {method: effective_window(x) for method, x in share.items()},
        "kept": {method: effective_window(x) for method, x in swapped.items()},
        "uniform": effective_window(uniform)[0],
    }


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; floats with three decimals."""
    text = [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    return [
        f"| {' | '.join(headings)} |",
        "|---|" + "---:|" * (len(headings) - 1),
        *(f"| {' | '.join(row)} |" for row in text),
    ]


def markdown(quickstart: Trained, others: dict[str, Trained], figures: dict[str, Any]) -> str:
    """Entropy and dilution of each layer by method, and CosScale by c."""
    lengths = sorted({r["length"] for r in quickstart.heads})
    layers = sorted({r["layer"] for r in quickstart.heads})
    shown = [lengths[0], figures["length"], lengths[-1]]
    shown = [length for length in dict.fromkeys(shown) if length in lengths]

    def entropy(method: str, of: Trained) -> list[str]:
        found = [pictures.by_layer(of.heads, method, "entropy", n) for n in shown]
        return [" / ".join(f"{x:.2f}" for x in values) for values in found]

    def value(method: str, of: Trained, metric: str, length: int) -> float:
        chosen = (method, length, metric)
        return next(
            r["value"] for r in of.records if (r["method"], r["length"], r["metric"]) == chosen
        )

    parts = [
        f"# {title(quickstart)}",
        "",
        f"Figures by layer: {' / '.join(str(1 + layer) for layer in layers)}.",
    ]
    parts += ["", "## Methods on the same weights", ""]
    headings = [f"entropy at {n}" for n in shown]
    parts += table(
        ["method", *headings, f"dilution at {shown[-1]}", f"accuracy at {shown[-1]}"],
        [
            [
                name,
                *entropy(name, quickstart),
                " / ".join(
                    f"{x:.2f}"
                    for x in pictures.by_layer(quickstart.heads, name, "dilution", shown[-1])
                ),
                value(name, quickstart, "accuracy", shown[-1]),
            ]
            for name in METHODS
        ],
    )
    parts += ["", f"## {title(next(iter(others.values())), 'each method')}", ""]
    window = f"window at {figures['length']}"
    parts += table(
        [
            "method",
            *(f"loss at {n}" for n in shown),
            *headings,
            window,
            f"with c = {KEPT}'s weights",
        ],
        [
            [
                name,
                *(value(name, of, "loss", n) for n in shown),
                *entropy(name, of),
                " / ".join(map(str, figures["window"][name])),
                " / ".join(map(str, figures["kept"].get(name, ["–"]))),
            ]
            for name, of in others.items()
        ],
    )
    one = quickstart.records[0]
    notes = [
        f"Entropy: mean over rows, in nats; {one['documents']} validation documents, protocol "
        f"{one['protocol']}. Dilution: weight on keys beyond the training length.",
        f"Window: keys at |Δ| < window hold {SHARE:.0%} of the weight, by the mean over all rows "
        f"of {DOCUMENTS} documents; {figures['uniform']} where all keys weigh the same.",
        f"With c = {KEPT}'s weights: trained with that c, which is then changed.",
    ]
    return "\n".join([*parts, "", *(f"- {note}" for note in notes), ""])


def title(trained: Trained, method: str = "") -> str:
    """The model and its training, in a line."""
    config = trained.run.config
    return (
        f"GAU of {config.model.num_layers} layers, trained at {config.data.train_length} bytes for "
        f"{trained.run.step} steps with {method or config.model.method}"
    )


def run(runs: Path, results: Path, size: str = "") -> None:
    """Trains what is missing, measures, and writes attention_maps.json, .md and the pictures."""
    quickstart, others = train_all(runs, size)
    config = quickstart.run.config
    tokens = validation_crops(config)
    workdir = runs / ("quickstart" + (f"_{size}" if size else ""))
    strips = middle_rows(quickstart, workdir, tokens)
    figures = scale_figures(others, tokens)
    content = {
        "provenance": provenance()
        | {"trained": [plain(of.run.config) for of in (quickstart, *others.values())]},
        "heads": quickstart.heads,
        "records": quickstart.records,
        "cosscale": figures
        | {
            "heads": [record for of in others.values() for record in of.heads],
            "records": [record for of in others.values() for record in of.records],
        },
    }
    results.mkdir(parents=True, exist_ok=True)
    rounded = jax.tree.map(lambda x: float(f"{x:.6g}") if isinstance(x, float) else x, content)
    write_atomically(results / "attention_maps.json", json.dumps(rounded, indent=1) + "\n")
    write_atomically(results / "attention_maps.md", markdown(quickstart, others, figures))
    heading, each = title(quickstart), title(next(iter(others.values())), "each method")
    train_length = config.data.train_length
    write_atomically(results / "attention_maps.png", pictures.draw_maps(strips, heading))
    write_atomically(
        results / "entropy_by_length.png",
        pictures.draw_layers(quickstart.heads, train_length, heading),
    )
    write_atomically(
        results / "cosscale_window.png",
        pictures.draw_scales(
            content["cosscale"], {cosscale(c): c for c in SCALES}, KEPT, train_length, each
        ),
    )
    print(f"results: {results / 'attention_maps.md'}, .json, .png, entropy_by_length.png, "
          f"cosscale_window.png")  # fmt: skip


def main() -> None:
    """Parses the flags, runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results"))
    parser.add_argument("--size", default="", help='"smoke" for seconds')
    arguments = parser.parse_args()
    run(arguments.runs, arguments.results, arguments.size)


if __name__ == "__main__":
    main()
