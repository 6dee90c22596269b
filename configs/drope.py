"""DroPE: a run that was trained with rotations goes on without them, for a short while.

    python -m lenext.train --config=configs/drope.py:runs/tiny --workdir=runs/tiny_drope
    python -m lenext.evaluate --workdir=runs/tiny_drope

The argument is the other run's workdir, or an imported checkpoint's. Everything is that run's but
the method, of which the position is dropped (`nope`), and the steps: a fifth of those that it had
(200, of an imported one), at its peak rate (1e-4) and its own length, of which the second half
decays. After Gelberg et al. (arXiv 2512.12167), who take positions for a help in training only, and
less than a hundredth of a large model's budget; how long and at what rate is ours.
"""

from lenext.buckets import as_path
from lenext.config import Config, to_config
from lenext.errors import UserError
from lenext.workdirs.checkpoints import newest_step
from lenext.workdirs.workdir import read_run_config


def get_config(arg: str | None = None) -> Config:
    """Argument: the workdir to go on from."""
    stored = read_run_config(as_path(arg)) if arg else None
    if not arg or stored is None:
        raise UserError(f"config argument {arg!r}: should be the workdir of a run to go on from")
    config = to_config(stored)
    done = newest_step(as_path(arg)) or 0
    more = max(2, done // 5) if done else 200
    config.model.method = "trained+nope"
    config.training.update(
        branch_from=arg, branch_step=0, steps=done + more, log_every=max(1, more // 10),
        eval_every=more // 2, checkpoint_every=more // 2,
    )  # fmt: skip
    if not done:
        config.optimizer.learning_rate = 1e-4
    config.optimizer.update(schedule="wsd", warmup_steps=0, decay_steps=more // 2)
    config.eval.methods = "trained"
    return config
