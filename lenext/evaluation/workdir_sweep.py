"""Evaluating a workdir: its newest checkpoint under every method at every length."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lenext.attention import overruled_parts
from lenext.config import (
    Config,
    check_positions,
    list_methods,
    plain,
    read_lengths,
    read_methods,
    read_vocab_size,
)
from lenext.config.imports import load
from lenext.data import check_data, get_tokenizer, open_split
from lenext.errors import UserError
from lenext.evaluation.calibrate import calibrate_run
from lenext.evaluation.protocols import CropSettings, get_protocol
from lenext.evaluation.sweep import Settings, Sweep, check_eval, sweep
from lenext.files import write_atomically
from lenext.models import check_sizes, in_words, model_methods
from lenext.parallel.meshes import make_mesh
from lenext.parallel.processes import first_goes_first, is_first, wait_for_all
from lenext.reporting.pictures import plot, plot_by_depth, plot_by_position
from lenext.reporting.tables import markdown, text_table, to_csv
from lenext.workdirs.calibration import under_method
from lenext.workdirs.pretrained import load_run
from lenext.workdirs.provenance import provenance


class Evaluated(NamedTuple):
    """What an evaluation found.

    Attributes:
      provenance: configs, seeds, tokens, steps, data, code, versions and machine, as JSON values.
      swept: the figures.
      headline: the metric that stands for the protocol.
      uncalibrated: methods with parts to calibrate that were not.
    """

    provenance: dict[str, Any]
    swept: Sweep
    headline: str
    uncalibrated: list[str]


def evaluate(config: Config, workdir: Path, *, calibrate_first: bool = False) -> list[dict]:
    """Sweeps length x method over the newest checkpoint of `workdir`; prints and writes the result.

    The model's sizes and the sweep come from `config`; the method and the length that the weights
    were trained with from the run itself. Writes DIR/eval/results.json, .csv, .md and .png, and
    by_position.png for a protocol that gives loss by position, by_depth.png for one of retrieval.

    With `calibrate_first`, parts of the methods that are to be calibrated are measured on training
    documents before, and written to DIR/calibration.json.

    Returns:
      The records, see `lenext.evaluation.sweep.sweep`.

    Raises:
      UserError: for a config that cannot be run, a workdir without a checkpoint, a checkpoint of
        another shape, or a length that no document has.
    """
    folder = workdir / "eval"
    found = evaluate_run(config, workdir, calibrate_first=calibrate_first, folder=folder)
    if is_first():
        _write(found, config, workdir, folder)
    wait_for_all("results")
    return found.swept.records


def evaluate_run(
    config: Config, workdir: Path, *, calibrate_first: bool = False, folder: Path | None = None
) -> Evaluated:
    """As `evaluate`, which see, but writes nothing except a calibration, and prints no table.

    A `folder` for results is made once all is known to be right, before the work begins.
    """
    load(config.imports)
    check_sizes(config.model)
    check_data(config.data)
    check_eval(config.eval)
    read_methods(config.model.method, config.data.train_length)
    mesh = make_mesh(config.mesh)
    if calibrate_first and jax.process_count() > 1:
        raise UserError("--calibrate: should be done by one process, without --distributed")
    data, settings = config.data, config.eval
    lengths = read_lengths(settings.lengths)
    tokenizer = get_tokenizer(data.tokenizer)
    vocab_size = read_vocab_size(config, tokenizer.vocab_size)
    run = load_run(
        workdir,
        weights=settings.weights,
        model_config=config.model,
        vocab_size=vocab_size,
        mesh=mesh if mesh.size > 1 else None,
        imports=config.imports,
    )
    run.check_tokenizer(tokenizer, data.tokenizer)
    run = run._replace(model=in_words(run.model))
    model, trained, step = run.model, run.config, run.step
    train_length = trained.data.train_length
    names = list_methods(settings.methods, "config.eval.methods")
    methods = {name: run.read_methods(name) for name in names}
    check_positions(config.model, max(lengths), "config.eval.lengths")
    protocol = get_protocol(settings.protocol, model.objective, "config.eval.protocol")

    with first_goes_first("data"):
        corpus = open_split(data, settings.split, tokenizer)
    crop_settings = CropSettings(
        documents=settings.documents,
        tokens=settings.tokens,
        seed=settings.seed,
        mask_rate=data.mask_rate,
        masks=settings.masks,
        needles=settings.needles,
        stride=settings.stride,
    )
    if calibrate_first:
        calibrate_run(run, workdir, methods, config, protocol, tokenizer)
    sequences = {
        length: protocol.prepare(corpus, tokenizer, length, max(lengths), crop_settings)
        for length in lengths
    }
    if folder is not None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    how = Settings(
        protocol=settings.protocol,
        byte_level=tokenizer.byte_level,
        batch_tokens=settings.batch_tokens,
        bucket=settings.bucket,
        probe_rows=settings.probe_rows,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
    )
    models, uncalibrated = {}, []
    for name, pattern in methods.items():
        models[name], initial = under_method(run, workdir, pattern)
        uncalibrated += [name] if initial else []
    swept = sweep(models, model_methods(model), sequences, how, mesh if mesh.size > 1 else None)
    source = provenance() | {
        "config": plain(config),
        "trained": plain(trained),
        "seeds": [trained.seed],
        "steps": step,
        "tokens": step * trained.data.batch_size * train_length,
        "data": corpus.describe(),
        "fingerprint": corpus.fingerprint,
    }
    return Evaluated(source, swept, protocol.headline, uncalibrated)


def _write(found: Evaluated, config: Config, workdir: Path, folder: Path) -> None:
    """Tables, pictures and records into `folder`; the headline's table to the terminal."""
    (records, heads, _), trained = found.swept, found.provenance["trained"]
    train_length = trained["data"]["train_length"]
    heading = f"trained with {trained['model']['method']} at {train_length} tokens, " + (
        f"{found.provenance['steps']} steps" if found.provenance["steps"] else "imported"
    )
    results = {"provenance": found.provenance, "records": records, "heads": heads}
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(folder / "results.csv", to_csv(records))
    write_atomically(folder / "heads.csv", to_csv(heads))
    about = [
        f"Data: {config.data.dataset}, split {config.eval.split}; weights: {config.eval.weights}."
    ]
    if found.uncalibrated:
        names = ", ".join(found.uncalibrated)
        about.append(f"Not calibrated (lenext.evaluate --calibrate): {names}.")
    about += [
        f"{said}." for name in dict.fromkeys(r["method"] for r in records)
        for said in overruled_parts(name)
    ]  # fmt: skip
    write_atomically(folder / "results.md", markdown(records, heading, about))
    write_atomically(folder / "results.png", plot(records, found.headline, train_length, heading))
    metrics = {record["metric"] for record in records}
    pictures = {
        "by_position.png": ("loss_by_position", plot_by_position),
        "by_depth.png": ("retrieved_by_place", plot_by_depth),
    }
    for name, (metric, draw) in pictures.items():
        if metric in metrics:
            write_atomically(folder / name, draw(records, train_length, heading))
        else:
            (folder / name).unlink(missing_ok=True)  # an earlier sweep's
    print(f"\n{workdir}: {heading}\n\n{text_table(records, found.headline)}\n")
    print("".join(f"{line}\n" for line in about[1:]), end="")
    print(f"all metrics, with intervals: {folder / 'results.md'}, .csv, .json")
    print(f"picture: {folder / 'results.png'}")
