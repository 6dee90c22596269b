"""A run that starts from another run's checkpoint."""

import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lenext.attention import spell_trained
from lenext.attention.grammar import names
from lenext.buckets import AnyPath, as_path, in_bucket
from lenext.config import Config, check_model, read_methods, to_config
from lenext.config.imports import join_imports, load
from lenext.errors import UserError
from lenext.files import copy_folder, move_folder
from lenext.models import FAMILIES, with_method
from lenext.parallel.meshes import place
from lenext.training.step import State
from lenext.workdirs.checkpoints import Checkpoints, newest_step
from lenext.workdirs.pretrained import load_run
from lenext.workdirs.versions import changed_sources
from lenext.workdirs.workdir import SOURCE, read_run_config


def restore_origin(
    config: Config, like: State, data: Mapping[str, Any]
) -> tuple[int, State, dict[str, Any]]:
    """What a branch starts from: a step of the run in `config.training.branch_from`.

    Writes nothing anywhere. Steps go on counting from the origin's: schedule, averages, dropout
    masks and the order of the data are those of a run that came here by itself. So one long run at
    a stable rate serves any number of decays ("wsd", arXiv 2404.06395), and each is what a run
    with that decay from the start would have been. Weights that were imported are of step 0, and
    come with no optimiser state and no place in any data: the branch has its own.

    Args:
      config: of the branch.
      like: a state in the shapes and on the devices of the branch.
      data: fingerprints of the branch's training data, see `check_data`.

    Returns:
      The step, its state, and its data as `Checkpoints.restore` gives it.

    Raises:
      UserError: no such run or step, another model, optimiser or dataset, an average to go on with
        that the origin did not keep, or no step left to take.
    """
    origin = as_path(config.training.branch_from)
    newest, stored = newest_step(origin), read_run_config(origin)
    if newest is None or stored is None:
        raise UserError(f"config.training.branch_from={str(origin)!r}: holds no run's checkpoint")
    checkpoints = Checkpoints(origin)
    try:
        step = config.training.branch_step or newest
        if step not in checkpoints.steps():
            kept = ", ".join(map(str, checkpoints.steps()))
            raise UserError(
                f"config.training.branch_step={step}: {origin} holds no checkpoint of that step, "
                f"only of {kept}"
            )
        if config.training.steps <= step:
            raise UserError(
                f"config.training.steps={config.training.steps}: should be above {step}, the step "
                f"at which this run branches off {origin}"
            )
        check_model(config.model, to_config(stored).model, str(origin))
        if not checkpoints.has_optimizer(step):
            there = {name: x for name, x in checkpoints.restore_data(step).items() if x}
            check_data(config, data, there, str(origin))
            return step, _start_from(origin, config, like), {}
        packing = stored.get("data", {}).get("packing", False)
        if config.data.packing != packing:
            raise UserError(
                f"config.data.packing={config.data.packing}: should be {packing} as in {origin}, "
                "whose place in the data means nothing otherwise"
            )
        regularised = bool(stored.get("training", {}).get("entropy_regulariser", 0.0))
        if bool(config.training.entropy_regulariser) != regularised:
            raise UserError(
                f"config.training.entropy_regulariser={config.training.entropy_regulariser:g}: "
                f"should be {'above 0' if regularised else '0'} as in {origin}, whose optimiser "
                f"holds {'the' if regularised else 'no'} thresholds"
            )
        state, resumed = checkpoints.restore(step, like)
    finally:
        checkpoints.close()
    check_data(config, data, resumed, str(origin))
    return step, state, resumed


def spell_method(config: Config) -> Config:
    """The config with "trained" in its method spelt out as that of the run it branches off.

    Raises:
      UserError: for a method that cannot be read, or options that the run's does not have; for a
        "trained" of no run.
    """
    origin = config.training.branch_from
    stored = read_run_config(as_path(origin)) if origin else None
    if stored is None:  # which a run that has branched off may do without
        try:
            told = bool(origin) and "trained" in names(config.model.method)
        except ValueError:  # as `read_methods` says
            told = False
        if told:
            raise UserError(
                f"config.training.branch_from={origin!r}: holds no run, whose method "
                f"config.model.method={config.model.method!r} would be"
            )
        return config
    config = config.copy_and_resolve_references()
    config.imports = join_imports(config.imports, stored["imports"])
    load(config.imports)
    try:
        config.model.method = spell_trained(config.model.method, stored["model"]["method"])
    except ValueError as error:
        raise UserError(f"config.model.method: {error}") from None
    return config


def _start_from(origin: AnyPath, config: Config, like: State) -> State:
    """A state of imported weights; what the branch's method learns stands at its initial values."""
    methods = read_methods(config.model.method, config.data.train_length)
    table = like["params"]
    for part in FAMILIES[config.model.family].token_embedding.split("."):
        table = table[part]
    vocab_size = table.shape[0]
    run = load_run(origin, model_config=config.model, vocab_size=vocab_size, param_dtype="float32")
    model = with_method(run.model, methods)
    params = nnx.to_pure_dict(nnx.state(model))
    params = place(params, jax.tree.map(lambda x: x.sharding, like["params"]))
    average = {"ema": jax.tree.map(jnp.copy, params)} if "ema" in like else {}
    return like | {"params": params} | average


def check_data(
    config: Config, data: Mapping[str, Any], resumed: Mapping[str, Any], workdir: str
) -> None:
    """Checks that a run goes on with the data and the tokeniser that it was trained on.

    Args:
      config: names them.
      data: the "fingerprint" of the data at hand, that of its "tokenizer", and the sources of
        "methods" from outside.
      resumed: holds what they were, as a checkpoint has it.
      workdir: of the run that wrote it.

    Raises:
      UserError: saying which of them is another.
    """
    names = {"fingerprint": f"dataset {config.data.dataset}",
             "tokenizer": f"tokenizer {config.data.tokenizer}"}  # fmt: skip
    for key, name in names.items():
        if resumed.get(key, data[key]) != data[key]:
            raise UserError(
                f"{name} has changed since {workdir} was trained with it: fingerprint "
                f"{data[key]}, was {resumed[key]}"
            )
    for name in changed_sources([config.model.method], resumed.get("methods", {})):
        raise UserError(
            f"method {name}: its source has changed since {workdir} was trained with it; take "
            "another workdir, or the source as it was"
        )


def keep_source(origin: AnyPath, workdir: AnyPath) -> None:
    """Takes along what `lenext.export_checkpoint` needs of an imported origin."""
    if not (origin / SOURCE).is_dir():
        return
    if in_bucket(workdir) or in_bucket(origin):
        copy_folder(origin / SOURCE, workdir / SOURCE)
    elif not (workdir / SOURCE).exists():
        beside = workdir / f".{SOURCE}"
        shutil.rmtree(beside, ignore_errors=True)  # of a start that was killed
        shutil.copytree(origin / SOURCE, beside)
        move_folder(beside, workdir / SOURCE)
