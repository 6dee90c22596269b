"""Short runs whose figures are kept: `python -m tests.workdirs.golden_versions` makes the JSON.

To be made anew when TRAINING_VERSION or FIGURES_VERSION was raised, and only then.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from lenext.attention import attend, init_gates, init_params, make_gates, make_method
from lenext.attention.catalogue import BUILT_IN
from lenext.evaluation import evaluate_run
from lenext.training import train
from lenext.workdirs.versions import results_version
from tests.training.common import read_metrics, tiny_config, tiny_decoder_config

FILE = Path(__file__).with_suffix(".json")
WORDS = ("attend", "bias", "cache", "decay", "entropy", "gate", "head", "key", "mask", "row")
STEPS = 6


def write_texts(folder):
    """Documents that are the same on every machine and under every Python."""
    folder.mkdir()
    for number in range(24):
        digests = (hashlib.sha256(f"{number} {i}".encode()).digest() for i in range(4))
        words = [WORDS[byte % len(WORDS)] for digest in digests for byte in digest]
        (folder / f"{number}.txt").write_text(" ".join(words))


def configs(texts, data_dir):
    """What is trained: both objectives, and the optimisers, schedules and doors to the data."""

    def with_changes(config, **changes):
        config.data.update(dataset="text_files", files=str(texts))
        config.optimizer.learning_rate = 1e-2
        config.eval.lengths = "48"
        config.training.update(steps=STEPS, eval_every=STEPS, checkpoint_every=STEPS)
        for path, value in changes.items():
            section, _, key = path.partition("__")
            config[section][key] = value
        return config

    gau, decoder = tiny_config(data_dir), tiny_decoder_config(data_dir)
    return {
        "gau": with_changes(gau, model__dropout=0.1, eval__methods="rerope+infoscale"),
        "decoder": with_changes(
            decoder, model__method="windowed(window=8)|lssar", data__packing=True,
            optimizer__name="muon", optimizer__schedule="wsd", optimizer__decay_steps=2,
            training__accumulate=2, training__ema_decay=0.9, training__z_loss=1e-3,
            eval__methods="trained+infoscale",
        ),
        "pose": with_changes(
            tiny_decoder_config(data_dir), data__positions="pose", data__target_length=64,
            model__method="pi(scale=4)", optimizer__name="lion", optimizer__learning_rate=1e-3,
            eval__protocol="sliding_window", eval__methods="trained", eval__stride=8,
        ),
        "passkey": with_changes(
            tiny_decoder_config(data_dir), data__task="passkey", data__train_length=48,
            eval__protocol="passkey", eval__lengths="96", eval__methods="yarn",
        ),
    }  # fmt: skip


def trained_figures(folder):
    """Losses by step of each run, and its figures under a few methods."""
    write_texts(folder / "texts")
    jax.config.update("jax_disable_most_optimizations", True)  # a minute of compilation less
    losses, figures = {}, {}
    for name, config in configs(folder / "texts", folder / "tfds").items():
        workdir = folder / name
        with mock.patch("builtins.print"):
            train(config, workdir)
            found = evaluate_run(config, workdir)
        losses[name] = [line["loss"] for line in read_metrics(workdir)]
        figures[name] = {
            f"{r['method']} {r['metric']} {r['length']} {r['positions'] or ''}".strip(): r["value"]
            for r in found.records()
        }
    return losses, figures


def method_figures():
    """A projection of what each method attends to, at 16 to 48 keys, causal and not."""
    train_length, length, heads, dim = 16, 48, 4, 16
    rng = np.random.default_rng(0)
    q, k, v, probe = (rng.normal(size=(1, length, heads, dim)).astype("float32") for _ in range(4))
    found = {}
    for name in sorted(BUILT_IN):
        method = make_method(name, train_length=train_length)
        params = init_params(method, heads, dim)
        of_gates, gates = init_gates(method, heads, dim), None
        if of_gates:  # of the first head's queries, by maps that are not all zero
            of_gates = jax.tree.map(lambda x: x + 0.1, of_gates)
            gates = make_gates(method, of_gates, q[:, :, 0], num_heads=heads)
        for causal in (True,) if method.causal_only else (True, False):
            out = attend(q, k, v, method, causal=causal, params=params, gates=gates)
            found[f"{name} {'causal' if causal else 'both'}"] = float(jnp.mean(out * probe))
    return found


def main():
    with tempfile.TemporaryDirectory() as folder:
        losses, figures = trained_figures(Path(folder))
    content = {
        "results_version": results_version(),
        "training": losses,
        "figures": figures,
        "methods": method_figures(),
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main()
