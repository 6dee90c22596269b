"""The training loop: data to step to metrics, evaluation and checkpoints; resumes what it finds."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array
from tqdm import tqdm

from lenext.buckets import AnyPath, as_path
from lenext.config import Config, read_methods
from lenext.data import Tokenizer, open_split, open_tokenizer, summary
from lenext.errors import Stopped, TrainingError
from lenext.evaluation.evaluators import make_evaluators
from lenext.models import Model, build_model, held_as, kinds_of, parameter_table, places_of
from lenext.parallel.memory import advice_on_pages, bytes_of, check_fits, free_bytes, needs_of, said
from lenext.parallel.meshes import (
    check_batch,
    make_mesh,
    place,
    shapes_on,
    shard_batch,
    splits_of,
)
from lenext.parallel.processes import first_goes_first, is_first
from lenext.training.batches import make_batches
from lenext.training.branch import check_data, keep_source, restore_origin, spell_method
from lenext.training.checks import validate
from lenext.training.metrics import MetricsWriter
from lenext.training.optimizer import frozen_parameters, make_optimizer, make_schedule
from lenext.training.preemption import Preemption
from lenext.training.regulariser import EntropyRegulariser
from lenext.training.step import State, init_state, make_train_step
from lenext.workdirs.checkpoints import Checkpoints, newest_step
from lenext.workdirs.versions import outside_sources
from lenext.workdirs.workdir import check_run, sole_writer, write_run_config


class _Opened(NamedTuple):
    """What a run reads."""

    tokenizer: Tokenizer
    batches: Any
    evaluators: Mapping[str, Callable[..., Mapping[str, float]]]
    data: Mapping[str, Any]  # fingerprints of training data, tokeniser and registered methods


class _Made(NamedTuple):
    """What a run computes, before any of it is computed."""

    graphdef: nnx.GraphDef
    schedule: Callable[[int], Any]
    train_step: Any  # jitted, to be compiled
    held: Callable[[Any], Any]  # parameters in the types that a model holds
    wanted: State  # shapes on the mesh
    initial: Callable[[], State]  # that of step 0


class _Run(NamedTuple):
    """What stays the same over the steps of a run; the state alone moves."""

    config: Config
    mesh: Mesh
    opened: _Opened
    made: _Made
    train_step: Callable[..., tuple[State, dict[str, Array]]]
    checkpoints: Checkpoints
    writer: MetricsWriter | None  # of the first process


def train(config: Config, workdir: AnyPath) -> None:
    """Trains what `config` says in `workdir`, from its newest checkpoint if it holds one.

    Without one it starts from the checkpoint that `config.training.branch_from` names, or at step
    0. Writes config.json, metrics.jsonl, tensorboard/ and checkpoints/ there.

    Raises:
      UserError: for a config that cannot be run, or a workdir that holds another run.
      TrainingError: at a loss or gradient that is not finite; the last checkpoint stays.
      Stopped: at SIGTERM, once a checkpoint of the step at hand is written.
      KeyboardInterrupt: at SIGINT, likewise.
    """
    config = spell_method(config)
    validate(config)
    check_run(workdir, config)
    settings = config.training
    mesh = make_mesh(config.mesh)
    check_batch(config.data, mesh, settings.accumulate)
    opened = _open(config, mesh)
    vocab_size = config.model.vocab_size or opened.tokenizer.vocab_size
    made = _make(config, vocab_size, mesh)
    train_step, batches = made.train_step, opened.batches

    with first_goes_first("checkpoints"):
        first = newest_step(workdir, set_aside=is_first()) or 0
    with contextlib.ExitStack() as stack:
        # From here on: compiling may take minutes, and a signal then is to end as any other does.
        preemption = stack.enter_context(Preemption())
        if first < settings.steps:
            train_step = compile_step(train_step, made.wanted, _peek(batches), mesh)
        resumed: dict[str, Any] = {}
        branching = first == 0 and bool(settings.branch_from)
        state = made.wanted if first else made.initial()
        if branching:  # before anything is written: an origin that will not do leaves no workdir
            first, state, resumed = restore_origin(config, state, opened.data)
            print(f"branching off step {first} of {settings.branch_from}")
        if is_first():
            write_run_config(workdir, config)
            stack.enter_context(sole_writer(workdir))
        checkpoints = Checkpoints(
            workdir, keep_latest=settings.keep_latest, best_metric=settings.best_metric
        )
        stack.push(checkpoints)
        if branching and is_first():
            keep_source(as_path(settings.branch_from), workdir)
        if branching and first:  # from here on it needs its origin no more
            checkpoints.save(first, state, resumed, {})
        elif first:
            state, resumed = checkpoints.restore(first, state)
            check_data(config, opened.data, resumed, str(workdir))
            print(f"resuming from step {first} of {workdir}")
        if first:
            batches.set_state(resumed["iterator"])
        if first >= settings.steps:
            print(f"{workdir} is trained to its last step, {first}")
            return
        writer = MetricsWriter(workdir, resume_step=first) if is_first() else None
        if writer is not None:
            stack.callback(writer.close)
        run = _Run(config, mesh, opened, made, train_step, checkpoints, writer)
        _run_steps(run, state, first, preemption)
    print(f"trained to step {settings.steps}: {workdir}")


def _open(config: Config, mesh: Mesh) -> _Opened:
    """Opens data and evaluators; says what there is."""
    tokenizer = open_tokenizer(config)
    with first_goes_first("data"):
        splits = dict.fromkeys(["train", *(each.split for each in config.evaluators.values())])
        corpora = {split: open_split(config.data, split, tokenizer) for split in splits}
        print(summary(corpora.values()))
        batches = make_batches(config, corpora["train"], tokenizer, mesh)
        evaluators = make_evaluators(config, tokenizer, mesh, corpora)
    data = {
        "fingerprint": corpora["train"].fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "methods": outside_sources([config.model.method]),
    }
    return _Opened(tokenizer, batches, evaluators, data)


def _make(config: Config, vocab_size: int, mesh: Mesh) -> _Made:
    """Model, optimiser and step, as shapes until they are known to fit; prints the parameters."""
    settings = config.training
    methods = read_methods(config.model.method, config.data.train_length)

    def build() -> Model:
        return build_model(config.model, methods, vocab_size, config.seed, param_dtype="float32")

    shapes = nnx.eval_shape(build)
    print(f"{type(shapes).__name__}, {config.model.method}, on {_described(mesh)}")
    print(parameter_table(shapes))
    schedule = make_schedule(config.optimizer, settings.steps)
    optimizer = make_optimizer(config.optimizer, schedule, kinds_of(shapes))
    held = held_as(config.model, methods, vocab_size)
    regulariser = (
        EntropyRegulariser(settings.entropy_regulariser, optax.adam(schedule))
        if settings.entropy_regulariser
        else None
    )

    def at_step_0(model: Model) -> State:
        average = settings.ema_decay > 0
        return init_state(model, optimizer, average=average, regulariser=regulariser)

    wanted = shapes_on(nnx.eval_shape(at_step_0, shapes), mesh, splits_of(shapes))
    shardings = jax.tree.map(lambda x: x.sharding, wanted)
    train_step = make_train_step(
        nnx.graphdef(shapes),
        optimizer,
        seed=config.seed,
        dropout=config.model.dropout > 0,
        accumulate=settings.accumulate,
        z_loss=settings.z_loss,
        ema_decay=settings.ema_decay,
        regulariser=regulariser,
        frozen=frozen_parameters(config.optimizer.frozen, places_of(shapes)),
        held=held,
        mesh=mesh,
        shardings=shardings,
    )

    def initial() -> State:
        return place(at_step_0(build()), shardings)

    return _Made(nnx.graphdef(shapes), schedule, train_step, held, wanted, initial)


def _peek(batches: Any) -> dict[str, np.ndarray]:
    """The next batch, which comes again."""
    here = batches.get_state()
    batch = next(batches)
    batches.set_state(here)
    return batch


def compile_step(
    train_step: Any, state: State, batch: dict[str, np.ndarray], mesh: Mesh
) -> Callable[..., tuple[State, dict[str, Array]]]:
    """The step for states like `state` (shapes), compiled; says what it wants of a device's memory.

    Raises:
      UserError: more than is free.
    """
    compiled = train_step.lower(state, shard_batch(batch, mesh), np.int32(1)).compile()
    peak = needs_of(compiled).peak
    names = [name for name in ("params", "optimizer", "ema") if name in state]
    parts = {name: bytes_of(state[name]) for name in names}
    parts["gradients and activations"] = peak - sum(parts.values())
    wanted = f"a step wants {said(peak)} on each device"
    parts = ", ".join(f"{name} {said(size)}" for name, size in parts.items())
    print(f"memory: {wanted} ({parts}), of {said(free_bytes(mesh))} free")
    if advice := advice_on_pages():
        print(f"faster on this machine: {advice}")
    check_fits(
        peak, f"{wanted} ({parts})", "a smaller config.data.batch_size, a larger "
        "config.training.accumulate, or config.model.remat=True takes less",
        mesh,
    )  # fmt: skip
    return compiled


def _described(mesh: Mesh) -> str:
    """Such as "8 cpu (data=4, tensor=2)"."""
    several = [f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1]
    axes = f" ({', '.join(several)})" if several and several != [f"data={mesh.size}"] else ""
    return f"{mesh.size} {jax.default_backend()}{axes}"


def _run_steps(run: _Run, state: State, first: int, preemption: Preemption) -> None:
    """Steps first + 1 to the last, or to the one at which the run has to stop."""
    settings = run.config.training
    tokens_a_step = run.config.data.batch_size * run.config.data.train_length
    # One bar for a person, a line a while for a log.
    patience = 0.5 if sys.stderr.isatty() else 30.0
    bar = tqdm(
        total=settings.steps, initial=first, unit="step", mininterval=patience, dynamic_ncols=True,
        disable=not is_first(),
    )  # fmt: skip
    clock, clock_step = time.perf_counter(), first
    previous: dict[str, Any] | None = None
    with bar:
        for step in range(first + 1, settings.steps + 1):
            batch = shard_batch(next(run.opened.batches), run.mesh)
            state, metrics = run.train_step(state, batch, np.int32(step))
            # The step before is done by now: looking at it costs no wait.
            if previous is not None:
                _check_finite(step - 1, previous, run.checkpoints)
            previous = metrics

            last = step == settings.steps
            stop = preemption.reached() and not last
            log = last or step % settings.log_every == 0
            evaluate = last or step % settings.eval_every == 0
            save = last or stop or step % settings.checkpoint_every == 0
            scalars: dict[str, float] = {}
            if log or evaluate or save:
                _check_finite(step, metrics, run.checkpoints)
                scalars = {name: float(value) for name, value in metrics.items()}
                scalars["learning_rate"] = float(run.made.schedule(step - 1))
                now = time.perf_counter()
                rate = (step - clock_step) * tokens_a_step / (now - clock)
                bar.set_postfix_str(
                    f"loss {scalars['loss']:.3f}, {rate:,.0f} tokens/s", refresh=False
                )
            if evaluate:
                scalars |= _evaluate(run, state)
            if log or evaluate:
                _check_finite(step, scalars, run.checkpoints)
                if run.writer is not None:
                    run.writer.write(step, scalars, {"tokens_per_second": rate})
                clock, clock_step = time.perf_counter(), step
            if save:
                if run.writer is not None:  # a checkpoint that is whole has its metrics
                    run.writer.flush()
                data = {"iterator": run.opened.batches.get_state(), **run.opened.data}
                run.checkpoints.save(step, state, data, scalars)
            bar.update()
            if stop:
                run.checkpoints.wait()
                told = "whose checkpoint is written; the same command goes on from there"
                if preemption.interrupted:
                    raise KeyboardInterrupt(f"interrupted at step {step}, {told}")
                raise Stopped(f"stopped by SIGTERM at step {step}, {told}")


def _evaluate(run: _Run, state: State) -> dict[str, float]:
    """Figures of all evaluators on the parameters and, as NAME_ema, on their average."""
    weights = {"": state["params"]}
    if "ema" in state:
        weights["_ema"] = state["ema"]
    return {
        f"eval/{name}{suffix}/{figure}": value
        for name, evaluator in run.opened.evaluators.items()
        for suffix, params in weights.items()
        for figure, value in evaluator(run.made.graphdef, run.made.held(params)).items()
    }


def _check_finite(step: int, metrics: Mapping[str, Any], checkpoints: Checkpoints) -> None:
    bad = [f"{name} {float(value)}" for name, value in metrics.items() if not np.isfinite(value)]
    if not bad:
        return
    kept = checkpoints.latest()
    place = f"the last good checkpoint is step {kept}" if kept else "no checkpoint was written yet"
    raise TrainingError(f"{', '.join(bad)} at step {step}: stopped; {place}")
