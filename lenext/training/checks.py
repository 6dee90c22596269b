"""What the config of a run may say, before anything is done."""

from lenext.config import Config, check_positions, read_methods
from lenext.config.checks import check_bounds, check_least, check_seed
from lenext.config.imports import load
from lenext.data import check_data
from lenext.errors import UserError
from lenext.evaluation import check_eval
from lenext.models import FAMILIES, check_sizes
from lenext.training.optimizer import check_optimizer


def validate(config: Config) -> None:
    """Checks values that would otherwise fail far from where they were given.

    What `config.imports` names is imported first, as methods may come from there.

    Raises:
      UserError: naming the first key that is off.
    """
    load(config.imports)
    check_seed(config.seed, "seed")
    check_sizes(config.model)
    check_data(config.data)
    _check_training(config)
    check_optimizer(config.optimizer, config.training.steps)
    check_eval(config.eval)
    task, family = config.data.task, config.model.family
    if task and FAMILIES[family].objective != "causal_lm":
        raise UserError(
            f"config.data.task={task!r}: should be empty for config.model.family={family!r}; tasks "
            "are for causal models, such as the decoder"
        )
    longest = max(config.data.train_length, config.data.target_length)
    check_positions(config.model, longest, "config.data.train_length or target_length")
    read_methods(
        config.model.method, config.data.train_length, head_dim=config.model.key_size,
        num_heads=1 if config.model.family == "gau" else config.model.num_heads,
        causal=FAMILIES[config.model.family].objective == "causal_lm",
    )  # fmt: skip


def _check_training(config: Config) -> None:
    training = config.training
    check_least(
        training, "training", 1, "steps", "log_every", "eval_every", "checkpoint_every",
        "keep_latest", "accumulate",
    )  # fmt: skip
    check_least(training, "training", 0, "z_loss", "entropy_regulariser", "branch_step")
    if training.steps >= 2**31:
        raise UserError(f"config.training.steps={training.steps}: should be below 2^31")
    check_bounds(training, "training", "ema_decay")
    if training.branch_step and not training.branch_from:
        raise UserError(
            f"config.training.branch_step={training.branch_step}: should be 0 without branch_from"
        )
    for name in config.evaluators if training.ema_decay else ():
        if f"{name}_ema" in config.evaluators:
            raise UserError(
                f"config.evaluators.{name}_ema: should have another name, as {name}'s figures on "
                "averaged parameters take this one"
            )
