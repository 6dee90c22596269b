"""Evaluating a workdir: its newest checkpoint under every method at every length."""

import json
from pathlib import Path

from flax import nnx

from lenext.checkpoints import Checkpoints
from lenext.config import Config, plain, read_lengths, read_methods, split_list, validate
from lenext.data import evaluation_crops, get_tokenizer, load_corpus
from lenext.errors import UserError
from lenext.evaluation.plot import plot
from lenext.evaluation.report import markdown, text_table, to_csv
from lenext.evaluation.sweep import Settings, sweep
from lenext.files import write_atomically
from lenext.models import build_model
from lenext.provenance import provenance
from lenext.workdir import read_run_config


def evaluate(config: Config, workdir: Path) -> list[dict]:
    """Sweeps length x method over the newest checkpoint of `workdir`; prints and writes the result.

    The model's sizes and the sweep come from `config`; the method and the length that the weights
    were trained with from the run itself. Writes DIR/eval/results.json, .csv, .md and .png.

    Returns:
      The records, see `lenext.evaluation.sweep.sweep`.

    Raises:
      UserError: for a config that cannot be run, a workdir without a checkpoint, a checkpoint of
        another shape, or a length that no document has.
    """
    validate(config)
    stored = read_run_config(workdir)
    checkpoints = Checkpoints(workdir) if (workdir / "checkpoints").is_dir() else None
    step = checkpoints.latest() if checkpoints else None
    if stored is None or checkpoints is None or step is None:
        raise UserError(f"workdir {workdir}: holds no checkpoint; train there first")
    train_length = stored["data"]["train_length"]
    trained = read_methods(stored["model"]["method"], train_length)
    names = split_list(config.eval.methods)
    methods = {name: read_methods(name, train_length) for name in names}
    if not methods:
        raise UserError("config.eval.methods: should name at least one method")
    lengths = read_lengths(config.eval.lengths)

    tokenizer = get_tokenizer(config.data.tokenizer)
    model = nnx.eval_shape(
        lambda: build_model(config.model, trained, tokenizer.vocab_size, config.seed)
    )
    graphdef, abstract = nnx.split(model)
    params = checkpoints.restore_params(step, nnx.to_pure_dict(abstract))
    checkpoints.close()
    model = nnx.merge(graphdef, params)

    corpus = load_corpus(
        config.data.dataset, config.eval.split, tokenizer, config.data.data_dir or None
    )
    crops = {
        length: evaluation_crops(
            corpus, length=length, documents=config.eval.documents, tokens=config.eval.tokens
        )
        for length in lengths
    }
    settings = Settings(
        batch_tokens=config.eval.batch_tokens,
        probe_rows=config.eval.probe_rows,
        bootstrap=config.eval.bootstrap,
        seed=config.eval.seed,
        mask_rate=config.data.mask_rate,
    )
    folder = workdir / "eval"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    records = sweep(model, methods, crops, tokenizer, settings)

    heading = f"trained with {stored['model']['method']} at {train_length} tokens, {step} steps"
    results = {
        "provenance": provenance()
        | {
            "config": plain(config),
            "trained": stored,
            "seeds": [stored["seed"]],
            "steps": step,
            "tokens": step * stored["data"]["batch_size"] * train_length,
            "data": corpus.describe(),
            "fingerprint": corpus.fingerprint,
        },
        "records": records,
    }
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(folder / "results.csv", to_csv(records))
    write_atomically(folder / "results.md", markdown(records, heading))
    write_atomically(folder / "results.png", plot(records, "accuracy", train_length, heading))
    print(f"\n{workdir}: {heading}\n\n{text_table(records, 'accuracy')}\n")
    print(f"all metrics, with intervals: {folder / 'results.md'}, .csv, .json")
    print(f"picture: {folder / 'results.png'}")
    return records
