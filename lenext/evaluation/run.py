"""Evaluating a workdir: its newest checkpoint under every method at every length."""

import json
from pathlib import Path

from lenext.config import (
    Config,
    plain,
    read_lengths,
    read_methods,
    read_vocab_size,
    split_list,
    validate,
)
from lenext.data import get_tokenizer, open_split
from lenext.errors import UserError
from lenext.evaluation.calibrate import calibrate_run
from lenext.evaluation.plot import plot, plot_by_position
from lenext.evaluation.protocols import Sampling, get_protocol
from lenext.evaluation.report import markdown, text_table, to_csv
from lenext.evaluation.sweep import Settings, sweep
from lenext.files import write_atomically
from lenext.models import model_methods
from lenext.models.calibration import under_method
from lenext.models.pretrained import load_run
from lenext.provenance import provenance


def evaluate(config: Config, workdir: Path, *, calibrate_first: bool = False) -> list[dict]:
    """Sweeps length x method over the newest checkpoint of `workdir`; prints and writes the result.

    The model's sizes and the sweep come from `config`; the method and the length that the weights
    were trained with from the run itself. Writes DIR/eval/results.json, .csv, .md and .png, and
    by_position.png for a protocol that gives loss by position.

    With `calibrate_first`, parts of the methods that are to be calibrated are measured on training
    documents before, and written to DIR/calibration.json.

    Returns:
      The records, see `lenext.evaluation.sweep.sweep`.

    Raises:
      UserError: for a config that cannot be run, a workdir without a checkpoint, a checkpoint of
        another shape, or a length that no document has.
    """
    validate(config)
    data, settings = config.data, config.eval
    lengths = read_lengths(settings.lengths)
    tokenizer = get_tokenizer(data.tokenizer)
    vocab_size = read_vocab_size(config, tokenizer.vocab_size)
    run = load_run(
        workdir, weights=settings.weights, model_config=config.model, vocab_size=vocab_size
    )
    run.check_tokenizer(tokenizer, data.tokenizer)
    model, trained, step = run.model, run.config, run.step
    train_length = trained.data.train_length
    methods = {name: read_methods(name, train_length) for name in split_list(settings.methods)}
    if not methods:
        raise UserError("config.eval.methods: should name at least one method")
    protocol = get_protocol(settings.protocol, model.objective, "config.eval.protocol")

    corpus = open_split(data, settings.split, tokenizer)
    sampling = Sampling(
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
        length: protocol.prepare(corpus, tokenizer, length, max(lengths), sampling)
        for length in lengths
    }
    folder = workdir / "eval"
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
    records, heads = sweep(models, model_methods(model), sequences, how)

    heading = f"trained with {trained.model.method} at {train_length} tokens, {step} steps"
    results = {
        "provenance": provenance()
        | {
            "config": plain(config),
            "trained": plain(trained),
            "seeds": [trained.seed],
            "steps": step,
            "tokens": step * trained.data.batch_size * train_length,
            "data": corpus.describe(),
            "fingerprint": corpus.fingerprint,
        },
        "records": records,
        "heads": heads,
    }
    headline = protocol.headline
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(folder / "results.csv", to_csv(records))
    write_atomically(folder / "heads.csv", to_csv(heads))
    about = [f"Data: {data.dataset}, split {settings.split}; weights: {settings.weights}."]
    if uncalibrated:
        about.append(f"Not calibrated (lenext.evaluate --calibrate): {', '.join(uncalibrated)}.")
    write_atomically(folder / "results.md", markdown(records, heading, about))
    write_atomically(folder / "results.png", plot(records, headline, train_length, heading))
    second = folder / "by_position.png"
    if any(record["positions"] for record in records):
        write_atomically(second, plot_by_position(records, train_length, heading))
    else:
        second.unlink(missing_ok=True)  # an earlier sweep's
    print(f"\n{workdir}: {heading}\n\n{text_table(records, headline)}\n")
    print("".join(f"{line}\n" for line in about[1:]), end="")
    print(f"all metrics, with intervals: {folder / 'results.md'}, .csv, .json")
    print(f"picture: {folder / 'results.png'}")
    return records
