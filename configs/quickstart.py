"""The smallest run that shows what length does: a GAU of 3 layers, trained at 64 bytes.

    python -m lenext.train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m lenext.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

Or `make quickstart`. About three minutes each on two CPU cores. Expect an accuracy of 0.67 at 64
bytes, and at 4096: softmax 0.17, rerope 0.36, rerope+infoscale 0.59, lm_infinite and windowed 0.66.
"""

from lenext.config import Config, read_arg

METHODS = (
    "softmax,infoscale,log_length,pi,ntk,yarn,"
    "rerope,rerope+infoscale,rerope+log_length,lm_infinite,windowed"
)


def quickstart(config: Config) -> None:
    """Sizes and steps for a few minutes on two cores."""
    config.training.update(steps=1200, log_every=50, eval_every=400, checkpoint_every=400)
    config.eval.methods = METHODS
    config.eval.lengths = "64,128,256,512,1024,2048,4096"
    config.eval.update(documents=20, tokens=32768)


def get_config(arg: str | None = None) -> Config:
    """Argument: "smoke" for seconds, or nothing."""
    return read_arg(arg, {"": quickstart})
