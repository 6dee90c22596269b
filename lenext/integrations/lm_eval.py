"""EleutherAI's lm-evaluation-harness on a run: its tasks, under any method, beyond any length.

    python -m lenext.integrations.lm_eval run --tasks TASK,… --model_args workdir=DIR,method=METHOD

is the harness's own command line, whose every flag goes through, with `--model lenext` filled in,
and `--batch_size auto` where nothing is said of it: --limit, --num_fewshot, --gen_kwargs,
--apply_chat_template, --output_path, … (`lm-eval run --help`). What --model_args may be:

  workdir=DIR           folder of a run of a decoder
  method=METHOD         in place of the one it was trained with, such as rerope(window=64)+infoscale
  weights=params        or ema, for their moving average
  tokenizer=NAME        in place of the run's, which may have none: bytes, or a file's path
  bos=auto              what texts start with, in place of the run's data.bos: auto, none, or tokens
  prefix_token_id=ID    what a first token is conditioned on: default, a start, or else an end
  imports=FILE          that registers methods, in place of the run's own
  dtype, param_dtype    to compute in, and to hold weights in, in place of the run's
  max_length=N          tokens that are read at once; default: any number
  max_gen_toks=256      tokens to draw where a task does not say
  batch_size=auto       texts in a pass; auto: as many as have batch_tokens tokens
  batch_tokens=N        default: the run's eval.batch_tokens
  seed=0                of the draws

In Python, importing this module lets lm_eval.simple_evaluate(model="lenext", …) find the model;
`LenextLM` is its class.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lenext import cli
from lenext.errors import UserError, one_line

if TYPE_CHECKING:
    from lenext.integrations.harness_model import LenextLM as LenextLM

NAME = "lenext"
MISSING = (
    "this takes the package lm_eval, the lm-evaluation-harness: "
    'python -m pip install "lm_eval>=0.4.13,<0.5", or the extra lenext[lm_eval]'
)


def register() -> None:
    """Tells the harness of the model "lenext".

    Raises:
      ImportError: it is not installed.
    """
    try:
        from lm_eval.api.registry import (  # pyright: ignore[reportMissingImports]
            model_registry,
        )
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise ImportError(MISSING) from None
    # Its bootstrap of errors would fork, which JAX's threads may hang; so it runs in this process.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    if NAME not in model_registry:
        model_registry.register(NAME, target="lenext.integrations.harness_model:LenextLM")


def main() -> None:
    """Runs the harness's command line.

    Raises:
      UserError: the harness is not installed, another model is asked for, a task that it does not
        know, or as `LenextLM`.
    """
    try:
        register()
    except ImportError as error:
        if str(error) != MISSING:
            raise
        raise UserError(MISSING) from None
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    sys.argv[1:] = filled_in(sys.argv[1:])
    try:
        cli_evaluate()
    except ValueError as error:  # which the harness says of what it was asked, tasks for instance
        frames = traceback.extract_tb(error.__traceback__)
        if "lm_eval" not in Path(frames[-1].filename).parts:
            raise
        raise UserError(one_line(str(error))) from None


def filled_in(words: list[str]) -> list[str]:
    """A command line of the harness with the model, and a batch size where it says none.

    Raises:
      UserError: it names another model.
    """
    if words[:1] and words[0] in ("ls", "validate"):
        return words
    rest = words[1:] if words[:1] == ["run"] else words
    if not rest:
        return words
    for word, following in zip(rest, [*rest[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        named = value if equals else following
        if flag in ("--model", "-M") and named != NAME:
            raise UserError(f"--model {named}: should be {NAME}; others are lm-eval's own business")
    said = {word.partition("=")[0] for word in rest}
    known = {"--batch_size", "-b", "--config", "-C"}  # a file may say the batch size
    size = [] if said & known else ["--batch_size", "auto"]
    return ["run", "--model", NAME, *size, *rest]


def __getattr__(name: str) -> Any:
    """`LenextLM`, on demand: the command looks first whether the harness is there."""
    if name == "LenextLM":
        from lenext.integrations.harness_model import LenextLM

        return LenextLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    cli.guard(str(__doc__), main, interrupted="interrupted")
else:
    register()
