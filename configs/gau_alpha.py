"""GAU-alpha at three sizes, trained from scratch on bytes.

    python -m lenext.train --config=configs/gau_alpha.py:small --workdir=runs/gau_small
    python -m lenext.evaluate --config=configs/gau_alpha.py:small --workdir=runs/gau_small

small: 4 layers, hidden 192, 984 320 parameters. A step takes 0.43 s on two cores, the
  run some 20 minutes. Not trained to its end here, so there is no number to expect yet.
paper: the InfoScale paper's model (arXiv 2501.08570), the first 6 layers at L = 64, but trained
  from scratch where the paper starts from released weights. Two busy cores took 19 s a step: a run
  for a GPU. Not trained here.
base: GAU-alpha whole, 24 layers at L = 512; for a GPU too. Not trained here.
"""

from configs.quickstart import METHODS
from lenext.config import Config, read_arg


def small(config: Config) -> None:
    """Large enough to learn Python, small enough for two cores."""
    config.model.update(hidden_size=192, intermediate_size=384, key_size=64, num_layers=4)
    config.training.update(steps=2500, eval_every=500, checkpoint_every=500)
    _sweep(config)


def paper(config: Config) -> None:
    """The paper's sizes and optimiser; it starts from released weights, this from scratch."""
    config.model.update(
        hidden_size=768, intermediate_size=1536, key_size=128, num_layers=6, method="softmax_plus",
        dropout=0.1,
    )  # fmt: skip
    config.data.update(batch_size=128)
    config.optimizer.update(learning_rate=5e-4, warmup_steps=2000, weight_decay=0.01)
    config.training.update(steps=20000, log_every=100, eval_every=1000, checkpoint_every=1000)
    _sweep(config)


def base(config: Config) -> None:
    """GAU-alpha's own depth and length."""
    paper(config)
    config.model.num_layers = 24
    config.data.train_length = 512
    config.evaluators.validation.length = 512
    config.eval.lengths = "512,1024,2048,4096,8192,16384,32768"


def _sweep(config: Config) -> None:
    config.eval.methods = METHODS
    config.eval.lengths = "64,128,256,512,1024,2048,4096"
    config.eval.documents = 24


def get_config(arg: str | None = None) -> Config:
    """Argument: a size, "small" where none is given, and "smoke" for seconds."""
    return read_arg(arg, {"small": small, "paper": paper, "base": base})
