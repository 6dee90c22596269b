"""Goes on with the weights of another run, such as an imported checkpoint's.

    python -m lenext.train --config=configs/finetune.py:runs/llama --workdir=runs/llama_tuned

The argument is the other run's workdir. Model and tokeniser are that run's; the data, the steps and
the rate are to be said: --config.data.dataset=text_files --config.data.files=FOLDER. To train what
a method learns and nothing else: --config.optimizer.frozen="*,!layers.*.attention.learned", with
--config.model.method for the method.
"""

from pathlib import Path

from lenext.config import Config, to_config
from lenext.errors import UserError
from lenext.workdirs.workdir import read_run_config


def get_config(arg: str | None = None) -> Config:
    """Argument: the workdir to go on from."""
    stored = read_run_config(Path(arg)) if arg else None
    if stored is None:
        raise UserError(f"config argument {arg!r}: should be the workdir of a run to go on from")
    config = to_config(stored)
    config.training.update(
        branch_from=arg, branch_step=0, steps=200, log_every=10, eval_every=100,
        checkpoint_every=100,
    )  # fmt: skip
    config.optimizer.update(learning_rate=1e-5, warmup_steps=20)
    config.data.batch_size = 8
    return config
