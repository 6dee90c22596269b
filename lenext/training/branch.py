"""A run that starts from another run's checkpoint."""

from pathlib import Path
from typing import Any

from lenext.checkpoints import Checkpoints, newest_step
from lenext.config import Config
from lenext.errors import UserError
from lenext.training.step import State
from lenext.workdir import read_run_config


def restore_origin(
    config: Config, like: State, fingerprint: str
) -> tuple[int, State, dict[str, Any]]:
    """What a branch starts from: a step of the run in `config.training.branch_from`.

    Writes nothing anywhere. Steps go on counting from the origin's: schedule, averages, dropout
    masks and the order of the data are those of a run that came here by itself. So one long run at
    a stable rate serves any number of decays ("wsd", arXiv 2404.06395), and each is what a run
    with that decay from the start would have been.

    Args:
      config: of the branch.
      like: a state in the shapes and on the devices of the branch.
      fingerprint: of the branch's training data.

    Returns:
      The step, its state, and its data as `Checkpoints.restore` gives it.

    Raises:
      UserError: no such run or step, another model, optimiser or dataset, an average to go on with
        that the origin did not keep, or no step left to take.
    """
    origin = Path(config.training.branch_from)
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
        packing = stored.get("data", {}).get("packing", False)
        if config.data.packing != packing:
            raise UserError(
                f"config.data.packing={config.data.packing}: should be {packing} as in {origin}, "
                "whose place in the data means nothing otherwise"
            )
        state, place = checkpoints.restore(step, like)
    finally:
        checkpoints.close()
    if place["fingerprint"] != fingerprint:
        raise UserError(
            f"config.training.branch_from={str(origin)!r}: trained on another dataset than "
            f"{config.data.dataset}: fingerprint {place['fingerprint']}, not {fingerprint}"
        )
    return step, state, place
