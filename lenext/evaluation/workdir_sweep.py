"""Evaluating a workdir: its newest checkpoint under every method at every length."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from lenext.attention import overruled_parts
from lenext.buckets import AnyPath
from lenext.config import (
    Config,
    check_positions,
    list_methods,
    plain,
    read_lengths,
    read_methods,
)
from lenext.config.imports import load
from lenext.data import (
    Tokenizer,
    VocabularyTokenizer,
    check_data,
    open_split,
    open_tokenizer,
    summary,
)
from lenext.data.datasets import ALL
from lenext.data.prompts import Chat
from lenext.errors import MISREAD, UserError, one_line
from lenext.evaluation.calibrate import calibrate_run
from lenext.evaluation.cells import Cells, cell_keys, digest
from lenext.evaluation.far import check_far, with_far
from lenext.evaluation.protocols import (
    GENERATING,
    CropSettings,
    Prompts,
    Sequences,
    get_protocol,
    read_tasks,
)
from lenext.evaluation.sweep import Settings, check_eval, sweep
from lenext.files import check_writable, write_atomically
from lenext.models import Model, check_sizes, in_words, model_methods
from lenext.parallel.meshes import make_mesh
from lenext.parallel.processes import first_goes_first, in_all, is_first, wait_for_all
from lenext.reporting.records import Cell, Record, Row, effective_lengths, make_records
from lenext.reporting.tables import markdown, text_table, to_csv
from lenext.workdirs.calibration import under_method
from lenext.workdirs.chat import ChatTemplate, special_tokens
from lenext.workdirs.pretrained import Pretrained, load_run
from lenext.workdirs.provenance import joined, provenance

FOLDER = "eval"
CELLS = "cells"
"""Folder of the cells in DIR/eval, shared by all of its tables."""
MOST_PANELS = 8
"""Of by_depth.png, which has one a method."""
MEASURED = ("git", "versions", "hardware")
"""What is told of the cells' provenance: one value, or a list where they differ."""
COSTS = ("seconds", "compile_seconds", "peak_bytes", "flops", "cache_bytes")


class Evaluated(NamedTuple):
    """What an evaluation found.

    Attributes:
      provenance: configs, seeds, tokens, steps, data, code, versions and machine, as JSON values.
      cells: by method as typed, a cell a length.
      kept: of each of these, the file's name.
      headline: the metric that stands for the protocol.
      uncalibrated: methods with parts to calibrate that were not.
    """

    provenance: dict[str, Any]
    cells: dict[str, list[Cell]]
    kept: list[dict[str, Any]]
    headline: str
    uncalibrated: list[str]

    def rows(self) -> list[Row]:
        """A row a method."""
        trained, seed = self.provenance["trained"], self.provenance["seeds"][0]
        return [
            Row(name, trained["model"]["method"], name, {seed: cells})
            for name, cells in self.cells.items()
        ]

    def records(self) -> list[Record]:
        """A record a method, length and metric, with what it cost; differences are to the first."""
        settings = self.provenance["config"]["eval"]
        found = make_records(
            self.rows(), next(iter(self.cells)), times=settings["bootstrap"], seed=settings["seed"]
        )
        cells = {(name, cell.length): cell for name, own in self.cells.items() for cell in own}
        for record in found:
            cell = cells[record["method"], record["length"]]
            for key in ("trained", "evaluated", "by_seed"):  # of one run there is one of each
                del record[key]
            record |= {"sequences": cell.sequences, "tokens": cell.tokens}
            record |= {key: getattr(cell, key) for key in COSTS}
            record["tokens_per_second"] = cell.tokens / cell.seconds
        return found


def evaluate(
    config: Config, workdir: AnyPath, *, calibrate_first: bool = False, name: str | None = None
) -> list[Record]:
    """Sweeps length x method over the newest checkpoint of `workdir`; prints and writes the result.

    The model's sizes and the sweep come from `config`; the method and the length that the weights
    were trained with from the run itself. Writes DIR/eval/results.json, .csv, .md and .png, and
    by_position.png for a protocol that gives loss by position, by_depth.png for one of retrieval.
    What was measured is kept in DIR/eval/cells, and is not measured again.

    Args:
      config: of the run, with what to evaluate.
      workdir: DIR.
      calibrate_first: parts of the methods that are to be calibrated are measured on training
        documents before, and written to DIR/calibration.json.
      name: writes the result to DIR/eval/NAME instead.

    Returns:
      The records, see `lenext.reporting.records.make_records`, and what each cost.

    Raises:
      UserError: for a config that cannot be run, a workdir without a checkpoint, a checkpoint of
        another shape, or a length that no document has.
    """
    folder = workdir / FOLDER
    if name is not None:
        if not re.fullmatch(r"\w[\w-]*", name) or name == CELLS:
            raise UserError(
                f"--name={name}: should be letters, digits, '_' and '-', and not {CELLS}"
            )
        folder = folder / name
    found = evaluate_run(config, workdir, calibrate_first=calibrate_first, folder=folder)
    records = found.records()
    if is_first():
        _write(found, records, workdir, folder)
    wait_for_all("results")
    return records


def evaluate_run(
    config: Config,
    workdir: AnyPath,
    *,
    calibrate_first: bool = False,
    folder: AnyPath | None = None,
) -> Evaluated:
    """As `evaluate`, which see, but writes only cells and a calibration, and prints no table.

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
    tokenizer = open_tokenizer(config, bos=settings.bos)
    run = load_run(
        workdir,
        weights=settings.weights,
        model_config=config.model,
        vocab_size=config.model.vocab_size or tokenizer.vocab_size,
        mesh=mesh if mesh.size > 1 else None,
        imports=config.imports,
    )
    run.check_tokenizer(tokenizer, data.tokenizer)
    run = run._replace(model=in_words(run.model))
    methods = {
        name: run.read_methods(name)
        for name in list_methods(settings.methods, "config.eval.methods")
    }
    for name in methods:  # while their files are what was read
        run.sources_of(name)
    check_positions(config.model, max(lengths), "config.eval.lengths")
    protocol = get_protocol(
        settings.protocol, run.model.objective, "config.eval.protocol", prompts=True
    )
    if calibrate_first and settings.split == ALL:
        raise UserError(
            "--calibrate: would measure on documents that config.eval.split=all evaluates; should "
            "be done before, on the run's own data"
        )
    if calibrate_first and settings.protocol in GENERATING:
        raise UserError(
            f"--calibrate: with config.eval.protocol={settings.protocol} there are no documents to "
            "calibrate on; should be done before, with full_context"
        )
    if settings.chat and settings.protocol not in GENERATING:
        raise UserError(
            f"config.eval.chat=True: should be False with config.eval.protocol={settings.protocol}"
        )
    if mesh.size > 1 and settings.protocol in GENERATING:
        raise UserError(
            f"config.eval.protocol={settings.protocol}: is of one device, and there are "
            f"{mesh.size}; hide the others (CUDA_VISIBLE_DEVICES, TPU_VISIBLE_CHIPS)"
        )

    if settings.far_margin:
        check_far(config, run.config.data.train_length)

    with first_goes_first("data"):
        corpus = open_split(data, settings.split, tokenizer)
        print(summary([corpus]), flush=True)
    crop_settings = CropSettings(
        documents=settings.documents,
        tokens=settings.tokens,
        seed=settings.seed,
        mask_rate=data.mask_rate,
        masks=settings.masks,
        needles=settings.needles,
        tasks=read_tasks(settings.tasks),
        chat=_chat_of(workdir, tokenizer) if settings.chat else None,
        stride=settings.stride,
    )
    if calibrate_first:
        calibrate_run(run, workdir, methods, config, protocol, tokenizer)
    sequences = {
        length: protocol.prepare(corpus, tokenizer, length, max(lengths), crop_settings)
        for length in lengths
    }
    if folder is not None:
        check_writable(folder)
    if settings.far_margin:
        sequences = {
            length: with_far(run, config, tokenizer.frame, own, workdir / FOLDER / CELLS, mesh)
            for length, own in sequences.items()
        }
    models, uncalibrated = {}, []
    for name, pattern in methods.items():
        models[name], initial = under_method(run, workdir, pattern)
        uncalibrated += [name] if initial else []
    how = Settings(
        protocol=settings.protocol,
        byte_level=tokenizer.byte_level,
        batch_tokens=settings.batch_tokens,
        bucket=settings.bucket,
        probe_rows=settings.probe_rows,
    )
    keys = cell_keys(run, models, sequences, how)
    source = provenance()
    step, trained = run.step, run.config
    found = _resumed(
        run, models, sequences, how, keys, Cells(workdir / FOLDER / CELLS), source,
        mesh if mesh.size > 1 else None,
    )  # fmt: skip
    cells = {name: [found[digest(keys[name, n])] for n in lengths] for name in methods}
    origins = [cell.provenance for own in cells.values() for cell in own]
    return Evaluated(
        source
        | {key: joined([origin[key] for origin in origins]) for key in MEASURED}
        | {
            "config": plain(config),
            "trained": plain(trained),
            "seeds": [trained.seed],
            "steps": step,
            "tokens": step * trained.data.batch_size * trained.data.train_length,
            "data": corpus.describe(),
            "fingerprint": corpus.fingerprint,
        },
        cells,
        [
            {"method": name, "length": n, "cell": Cells.name(n, keys[name, n])}
            for name in methods
            for n in lengths
        ],
        protocol.headline,
        uncalibrated,
    )


def _chat_of(workdir: AnyPath, tokenizer: Tokenizer) -> Chat:
    """What the run's chat template puts around a question.

    Raises:
      UserError: the run has none, or a tokeniser without special tokens.
    """
    before, after = ChatTemplate(workdir, special_tokens(workdir)).around()
    if not isinstance(tokenizer, VocabularyTokenizer):
        raise UserError("config.eval.chat=True: bytes have no tokens that chats are made of")
    return Chat(*(tuple(tokenizer.encode_with_special(x).tolist()) for x in (before, after)))


def _resumed(
    run: Pretrained,
    models: dict[str, Model],
    sequences: Mapping[int, Sequences | Prompts],
    how: Settings,
    keys: dict[tuple[str, int], dict[str, Any]],
    cells: Cells,
    source: dict[str, Any],
    mesh: jax.sharding.Mesh | None,
) -> dict[str, Cell]:
    """The cells of all keys, by their digests: those that are there, and the others measured."""
    first: dict[str, tuple[str, int]] = {}  # two names may be one method
    for place, key in keys.items():
        first.setdefault(digest(key), place)
    found = {key: cells.find(place[1], keys[place]) for key, place in first.items()}
    there = in_all([cell is not None for cell in found.values()])
    known = {
        key: cell
        for (key, cell), everywhere in zip(found.items(), there, strict=True)
        if everywhere and cell is not None
    }
    wanted = {place: key for key, place in first.items() if key not in known}
    if known:
        what = f"{len(wanted)} to measure" if wanted else "nothing is left to measure"
        print(f"{len(known)} of {len(first)} cells are in {cells.folder}; {what}", flush=True)

    def keep(name: str, cell: Cell) -> None:
        if is_first():
            cells.keep(keys[name, cell.length], cell)

    measured = sweep(
        models, model_methods(run.model), sequences, how, mesh, wanted=wanted, keep=keep,
        source=source,
    )  # fmt: skip
    return known | {wanted[place]: cell for place, cell in measured.items()}


def _write(found: Evaluated, records: list[Record], workdir: AnyPath, folder: AnyPath) -> None:
    """Tables, pictures and records into `folder`; the headline's table to the terminal."""
    # Not above: matplotlib would take half a second of every start, training's too.
    from lenext.reporting.pictures import plot, plot_by_depth, plot_by_position

    config, trained = found.provenance["config"], found.provenance["trained"]
    settings = config["eval"]
    train_length = trained["data"]["train_length"]
    heading = f"trained with {trained['model']['method']} at {train_length} tokens, " + (
        f"{found.provenance['steps']} steps" if found.provenance["steps"] else "imported"
    )
    heads = [
        {"method": name, "length": cell.length} | record
        for name, cells in found.cells.items()
        for cell in cells
        for record in cell.heads
    ]
    effective = effective_lengths(
        found.rows(), train_length, settings["margin"], times=settings["bootstrap"],
        seed=settings["seed"],
    )  # fmt: skip
    _tell_replaced(folder / "results.json", found.kept)
    results = {
        "provenance": found.provenance,
        "headline": found.headline,
        "cells": found.kept,
        "effective_lengths": effective,
        "records": records,
        "heads": heads,
    }
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(folder / "results.csv", to_csv(records))
    write_atomically(folder / "heads.csv", to_csv(heads))
    about = [
        f"Data: {config['data']['dataset']}, split {settings['split']}; weights: "
        f"{settings['weights']}."
    ]
    if found.uncalibrated:
        unmeasured = ", ".join(found.uncalibrated)
        about.append(f"Not calibrated (lenext.evaluate --calibrate): {unmeasured}.")
    about += [f"{said}." for name in found.cells for said in overruled_parts(name)]
    text = markdown(records, heading, about, headline=found.headline, effective=effective)
    write_atomically(folder / "results.md", text)
    write_atomically(folder / "results.png", plot(records, found.headline, train_length, heading))
    metrics = {record["metric"] for record in records}
    shown = [*found.cells][:MOST_PANELS]
    few = [record for record in records if record["method"] in shown]
    pictures = {
        "by_position.png": ("loss_by_position", plot_by_position, records),
        "by_depth.png": ("retrieved_by_place", plot_by_depth, few),
    }
    for name, (metric, draw, some) in pictures.items():
        if metric in metrics:
            write_atomically(folder / name, draw(some, train_length, heading))
        else:
            (folder / name).unlink(missing_ok=True)  # an earlier sweep's
    print(f"\n{workdir}: {heading}\n\n{text_table(records, found.headline)}\n")
    print("".join(f"{line}\n" for line in about[1:]), end="")
    print(f"all metrics, with intervals: {folder / 'results.md'}, .csv, .json")
    print(f"picture: {folder / 'results.png'}")


def _tell_replaced(path: AnyPath, kept: list[dict[str, Any]]) -> None:
    """Says which cells an earlier table showed that the one to come does not."""
    if not path.exists():
        return
    try:
        earlier = json.loads(path.read_text())["cells"]
        gone = [cell for cell in earlier if cell not in kept]
        lengths: dict[str, list[str]] = {}
        for cell in gone:
            lengths.setdefault(cell["method"], []).append(str(cell["length"]))
    except (OSError, *MISREAD):
        print(f"{path}: was made before cells were kept; what it showed is replaced")
        return
    if gone:
        told = "; ".join(f"{method} at {', '.join(own)}" for method, own in lengths.items())
        print(
            one_line(
                f"{path.parent} showed {told}, and now shows what was asked; what was measured "
                f"stays in {CELLS}, and --name=NAME keeps a table apart"
            )
        )
