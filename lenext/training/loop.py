"""The training loop: data to step to metrics, evaluation and checkpoints; resumes what it finds."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from lenext.checkpoints import Checkpoints
from lenext.config import Config, read_methods, read_vocab_size, validate
from lenext.data import get_tokenizer, load_corpus
from lenext.errors import TrainingError, UserError
from lenext.evaluation.evaluators import make_evaluators
from lenext.models import build_model, parameter_table
from lenext.training.batches import make_batches
from lenext.training.metrics import MetricsWriter
from lenext.training.optimizer import make_optimizer, make_schedule
from lenext.training.sharding import check_batch, data_mesh, replicate, shard_batch
from lenext.training.step import init_state, make_train_step
from lenext.workdir import check_run, write_run_config


def train(config: Config, workdir: Path) -> None:
    """Trains what `config` says in `workdir`, from its newest checkpoint if it holds one.

    Writes config.json, metrics.jsonl, tensorboard/ and checkpoints/ there.

    Raises:
      UserError: for a config that cannot be run, or a workdir that holds another run.
      TrainingError: at a loss or gradient that is not finite; the last checkpoint stays.
    """
    validate(config)
    check_run(workdir, config)
    mesh = data_mesh()
    check_batch(config.data.batch_size, mesh)
    tokenizer = get_tokenizer(config.data.tokenizer)
    corpus = load_corpus(config.data.dataset, "train", tokenizer, config.data.data_dir or None)
    batches = make_batches(config, corpus, tokenizer)
    evaluators = make_evaluators(config, tokenizer)

    methods = read_methods(config.model.method, config.data.train_length)
    vocab_size = read_vocab_size(config, tokenizer.vocab_size)
    model = build_model(config.model, methods, vocab_size, config.seed)
    graphdef = nnx.graphdef(model)
    print(f"{type(model).__name__}, {config.model.method}, on {mesh.size} {jax.default_backend()}")
    print(parameter_table(model))
    schedule = make_schedule(config.optimizer, config.training.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    state = replicate(init_state(model, optimizer), mesh)
    train_step = make_train_step(
        graphdef, optimizer, seed=config.seed, dropout=config.model.dropout > 0
    )

    write_run_config(workdir, config)
    checkpoints = Checkpoints(
        workdir,
        keep_latest=config.training.keep_latest,
        best_metric=config.training.best_metric,
    )
    first = checkpoints.latest() or 0
    if first:
        state, place = checkpoints.restore(first, state)
        if place["fingerprint"] != corpus.fingerprint:
            raise UserError(
                f"dataset {config.data.dataset} has changed since {workdir} was trained on it: "
                f"fingerprint {corpus.fingerprint}, was {place['fingerprint']}"
            )
        batches.set_state(place["iterator"])
        print(f"resuming from step {first} of {workdir}")
    if first >= config.training.steps:
        print(f"{workdir} is trained to its last step, {first}")
        checkpoints.close()
        return

    writer = MetricsWriter(workdir, resume_step=first)
    try:
        _run_steps(
            config, state, first, train_step, batches, mesh, schedule, evaluators, graphdef,
            checkpoints, writer, corpus.fingerprint,
        )  # fmt: skip
    finally:
        writer.close()
        checkpoints.close()
    print(f"trained to step {config.training.steps}: {workdir}")


def _run_steps(
    config, state, first, train_step, batches, mesh, schedule, evaluators, graphdef,
    checkpoints, writer, fingerprint,
) -> None:  # fmt: skip
    """Steps first + 1 to the last."""
    settings = config.training
    tokens_a_step = config.data.batch_size * config.data.train_length
    # One bar for a person, a line a while for a log.
    patience = 0.5 if sys.stderr.isatty() else 30.0
    bar = tqdm(
        total=settings.steps, initial=first, unit="step", mininterval=patience, dynamic_ncols=True
    )
    clock, clock_step = time.perf_counter(), first
    previous: dict[str, Any] | None = None
    with bar:
        for step in range(first + 1, settings.steps + 1):
            batch = shard_batch(next(batches), mesh)
            state, metrics = train_step(state, batch, np.int32(step))
            # The step before is done by now: looking at it costs no wait.
            if previous is not None:
                _check_finite(step - 1, previous, checkpoints)
            previous = metrics

            last = step == settings.steps
            log = last or step % settings.log_every == 0
            evaluate = last or step % settings.eval_every == 0
            save = last or step % settings.checkpoint_every == 0
            scalars: dict[str, float] = {}
            if log or evaluate or save:
                _check_finite(step, metrics, checkpoints)
                scalars = {name: float(value) for name, value in metrics.items()}
                scalars["learning_rate"] = float(schedule(step - 1))
                now = time.perf_counter()
                rate = (step - clock_step) * tokens_a_step / (now - clock)
                bar.set_postfix_str(
                    f"loss {scalars['loss']:.3f}, {rate:,.0f} tokens/s", refresh=False
                )
            if evaluate:
                for name, evaluator in evaluators.items():
                    figures = evaluator(graphdef, state["params"])
                    scalars |= {f"eval/{name}/{key}": figures[key] for key in figures}
            if log or evaluate:
                _check_finite(step, scalars, checkpoints)
                writer.write(step, scalars, {"tokens_per_second": rate})
                clock, clock_step = time.perf_counter(), step
            if save:
                # An update may leave finite parameters that no step can start from: a checkpoint
                # is good if a step from it is. The copy is there because steps donate their state.
                _, ahead = train_step(jax.tree.map(jnp.copy, state), batch, np.int32(step + 1))
                _check_finite(step + 1, ahead, checkpoints)
                place = {"iterator": batches.get_state(), "fingerprint": fingerprint}
                checkpoints.save(step, state, place, scalars)
            bar.update()


def _check_finite(step: int, metrics: Mapping[str, Any], checkpoints: Checkpoints) -> None:
    bad = [f"{name} {float(value)}" for name, value in metrics.items() if not np.isfinite(value)]
    if not bad:
        return
    kept = checkpoints.latest()
    place = f"the last good checkpoint is step {kept}" if kept else "no checkpoint was written yet"
    raise TrainingError(f"{', '.join(bad)} at step {step}: stopped; {place}")
