"""Goes on with the weights of another run, such as an imported checkpoint's.

    python -m lenext.train --config=configs/finetune.py:runs/llama --workdir=runs/llama_tuned

The argument is the other run's workdir. Model and tokeniser are that run's; the data, the steps and
the rate are to be said: --config.data.dataset=text_files --config.data.files=FOLDER. To train what
a method learns and nothing else: --config.optimizer.frozen="*,!layers.*.attention.learned", with
--config.model.method for the method.

A real one, `make smollm2`, at 1024 tokens a sequence. The backward pass computes each layer anew,
so that 4.1 GB are enough:

    python -m lenext.train --config=configs/finetune.py:runs/smollm2 --workdir=runs/smollm2_tuned \
        --config.data.dataset=stdlib_packages --config.data.train_length=1024 \
        --config.data.batch_size=2 --config.model.remat=True --config.training.steps=20 \
        --config.optimizer.warmup_steps=2

The length of sequences is L of what is named from then on; `trained` stays what it was. Evaluations
during training that are of length L follow it.
"""

from lenext.buckets import as_path
from lenext.config import Config, to_config
from lenext.errors import UserError
from lenext.workdirs.workdir import read_run_config


def get_config(arg: str | None = None) -> Config:
    """Argument: the workdir to go on from."""
    stored = read_run_config(as_path(arg)) if arg else None
    if stored is None:
        raise UserError(f"config argument {arg!r}: should be the workdir of a run to go on from")
    config = to_config(stored)
    config.training.update(
        branch_from=arg, branch_step=0, steps=200, log_every=10, eval_every=100,
        checkpoint_every=100,
    )  # fmt: skip
    config.optimizer.update(learning_rate=1e-5, warmup_steps=20)
    config.data.batch_size = 8
    for evaluator in config.evaluators.values():
        if evaluator.get("length") == config.data.train_length:
            evaluator.length = config.data.get_ref("train_length")
    return config
