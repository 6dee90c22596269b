"""The section `data` of a config: what it may say."""

from lenext.config import Config
from lenext.config.checks import check_choices, check_least
from lenext.data.tasks import TASKS
from lenext.errors import UserError


def check_data(config: Config) -> None:
    """Checks the section `data`, but for what its files and tokeniser hold.

    Raises:
      UserError: naming the first key that is off.
    """
    check_least(config, "data", 1, "batch_size", "needles")
    check_least(config, "data", 2, "train_length")
    check_choices(config, "data", positions=("plain", "pose", "random"), task=("", *TASKS))
    if config.task and config.packing:
        raise UserError(
            f"config.data.packing=True: should be False with config.data.task={config.task!r}, "
            "which is hidden in one text"
        )
    length = config.train_length
    if not 2 <= config.pose_chunks <= length:
        raise UserError(
            f"config.data.pose_chunks={config.pose_chunks}: should be from 2 to "
            f"train_length={length}"
        )
    if config.positions == "plain":
        if config.target_length:
            raise UserError(
                f"config.data.target_length={config.target_length}: should be 0 where positions "
                "are plain; say config.data.positions=pose, or random"
            )
        return
    if not length < config.target_length < 2**31:
        raise UserError(
            f"config.data.target_length={config.target_length}: with positions="
            f"{config.positions} should be above train_length={length}, and below 2^31"
        )
    if config.packing:
        raise UserError(
            f"config.data.packing=True: should be False with positions={config.positions}, which "
            "skip within one document"
        )
