"""Evaluating a workdir: its newest checkpoint under every method at every length."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

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
    Corpus,
    Tokenizer,
    VocabularyTokenizer,
    check_data,
    open_split,
    open_tokenizer,
    summary,
)
from lenext.data.datasets import ALL
from lenext.data.prompts import Chat
from lenext.errors import UserError
from lenext.evaluation.calibrate import calibrate_run
from lenext.evaluation.cells import CELLS, Cells, cell_keys, digest
from lenext.evaluation.far import check_far, with_far
from lenext.evaluation.protocols import (
    GENERATING,
    CropSettings,
    Prompts,
    Sequences,
    get_protocol,
    read_tasks,
)
from lenext.evaluation.results import Evaluated, write_results
from lenext.evaluation.sweep import Settings, check_eval, sweep
from lenext.files import check_writable
from lenext.models import Model, check_sizes, in_words, model_methods
from lenext.parallel.meshes import make_mesh
from lenext.parallel.processes import first_goes_first, in_all, is_first, wait_for_all
from lenext.reporting.records import Cell, Record
from lenext.workdirs.calibration import under_method
from lenext.workdirs.chat import ChatTemplate, special_tokens
from lenext.workdirs.pretrained import Pretrained, load_run
from lenext.workdirs.provenance import joined, provenance

FOLDER = "eval"
MEASURED = ("git", "versions", "hardware")
"""What is told of the cells' provenance."""


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
        write_results(found, records, workdir, folder)
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
    _check(config)
    mesh = make_mesh(config.mesh)
    split = mesh if mesh.size > 1 else None
    if calibrate_first and jax.process_count() > 1:
        raise UserError("--calibrate: should be done by one process, without --distributed")
    data, settings = config.data, config.eval
    lengths = read_lengths(settings.lengths)
    tokenizer = open_tokenizer(config, bos=settings.bos)
    run = _load(config, workdir, tokenizer, split)
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
    _refuse(settings, mesh.size, calibrate_first)
    if settings.far_margin:
        check_far(config, run.config.data.train_length)

    with first_goes_first("data"):
        corpus = open_split(data, settings.split, tokenizer)
        print(summary([corpus]), flush=True)
    if calibrate_first:
        calibrate_run(run, workdir, methods, config, protocol, tokenizer)
    crop_settings = _crop_settings(config, workdir, tokenizer)
    sequences = {
        length: protocol.prepare(corpus, tokenizer, length, max(lengths), crop_settings)
        for length in lengths
    }
    if folder is not None:
        check_writable(folder)
    cells = Cells(workdir / FOLDER / CELLS)
    if settings.far_margin:
        sequences = {
            length: with_far(run, config, tokenizer.frame, own, cells.folder, mesh)
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
    found = _resumed(run, models, sequences, how, keys, cells, source, split)
    by_method = {name: [found[digest(keys[name, n])] for n in lengths] for name in methods}
    kept = [
        {"method": name, "length": n, "cell": Cells.name(n, keys[name, n])}
        for name in methods
        for n in lengths
    ]
    told = source | _measured_where(by_method) | _evaluated_what(config, run, corpus)
    return Evaluated(told, by_method, kept, protocol.headline, uncalibrated)


def _check(config: Config) -> None:
    """Checks what can be said of a config without a run."""
    load(config.imports)
    check_sizes(config.model)
    check_data(config.data)
    check_eval(config.eval)
    read_methods(config.model.method, config.data.train_length)


def _load(
    config: Config, workdir: AnyPath, tokenizer: Tokenizer, mesh: jax.sharding.Mesh | None
) -> Pretrained:
    """The run, as its words are evaluated, once its tokeniser is known to be that one."""
    run = load_run(
        workdir,
        weights=config.eval.weights,
        model_config=config.model,
        vocab_size=config.model.vocab_size or tokenizer.vocab_size,
        mesh=mesh,
        imports=config.imports,
    )
    run.check_tokenizer(tokenizer, config.data.tokenizer)
    return run._replace(model=in_words(run.model))


def _refuse(settings: Config, devices: int, calibrate_first: bool) -> None:
    """Refuses what does not go together, of a section `eval`.

    Raises:
      UserError: naming the key, or --calibrate.
    """
    generating = settings.protocol in GENERATING
    if calibrate_first and settings.split == ALL:
        raise UserError(
            "--calibrate: would measure on documents that config.eval.split=all evaluates; should "
            "be done before, on the run's own data"
        )
    if calibrate_first and generating:
        raise UserError(
            f"--calibrate: with config.eval.protocol={settings.protocol} there are no documents to "
            "calibrate on; should be done before, with full_context"
        )
    if settings.chat and not generating:
        raise UserError(
            f"config.eval.chat=True: should be False with config.eval.protocol={settings.protocol}"
        )
    if devices > 1 and generating:
        raise UserError(
            f"config.eval.protocol={settings.protocol}: is of one device, and there are "
            f"{devices}; hide the others (CUDA_VISIBLE_DEVICES, TPU_VISIBLE_CHIPS)"
        )


def _crop_settings(config: Config, workdir: AnyPath, tokenizer: Tokenizer) -> CropSettings:
    """How sequences are made of documents."""
    settings = config.eval
    return CropSettings(
        documents=settings.documents,
        tokens=settings.tokens,
        seed=settings.seed,
        mask_rate=config.data.mask_rate,
        masks=settings.masks,
        needles=settings.needles,
        tasks=read_tasks(settings.tasks),
        chat=_chat_of(workdir, tokenizer) if settings.chat else None,
        stride=settings.stride,
    )


def _measured_where(by_method: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """What cells' provenances have in common, or a list where they differ."""
    origins = [cell.provenance for cells in by_method.values() for cell in cells]
    return {key: joined([origin[key] for origin in origins]) for key in MEASURED}


def _evaluated_what(config: Config, run: Pretrained, corpus: Corpus) -> dict[str, Any]:
    """Which weights were evaluated, how, and on what."""
    trained = run.config
    return {
        "config": plain(config),
        "trained": plain(trained),
        "seeds": [trained.seed],
        "steps": run.step,
        "tokens": run.step * trained.data.batch_size * trained.data.train_length,
        "data": corpus.describe(),
        "fingerprint": corpus.fingerprint,
    }


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
