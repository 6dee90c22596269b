"""Samples from a decoder: python -m lenext.generate --workdir=DIR --prompt="def main("."""

import io
import os
import sys
from pathlib import Path

import numpy as np
from absl import flags

from lenext import cli
from lenext.buckets import as_path
from lenext.config import check_positions
from lenext.errors import UserError
from lenext.models import take_apart
from lenext.models.generation import Sampling, generate
from lenext.workdirs.calibration import under_name
from lenext.workdirs.pretrained import load_run

USAGE = f"""{__doc__}

  --workdir=DIR       folder of a run of a decoder
  --prompt=TEXT       what to go on from; - for standard input
  --prompt_file=FILE  what to go on from, in place of --prompt
  --max_tokens=200    how many tokens to draw
  --method=METHOD     in place of the one it was trained with
  --imports=FILE      that registers methods, in place of the run's own
  --bos=auto          what the prompt starts with, in place of the run's data.bos: auto, as the
                      tokeniser says, none, or tokens or their ids
  --ignore_eos        go on where the text has ended
  --tokenizer=NAME    in place of the run's, which may have none: bytes, or a file's path
  --temperature=1     0 takes the likeliest token
  --top_k=0           only the k likeliest tokens; 0 for all
  --top_p=1           only the likeliest tokens that together hold this probability
  --seed=0            of the draws"""


def main() -> None:
    """Parses the flags and streams the text to stdout.

    Raises:
      UserError: for flags that do not fit, or a workdir that holds no decoder.
    """
    workdir_flag = flags.DEFINE_string("workdir", None, "Folder of the run.")
    prompt_flag = flags.DEFINE_string("prompt", None, "What to go on from.")
    file_flag = flags.DEFINE_string("prompt_file", None, "What to go on from, of a file.")
    bos_flag = flags.DEFINE_string("bos", "", "What the prompt starts with.")
    ignore_eos = flags.DEFINE_boolean("ignore_eos", False, "Go on where the text has ended.")
    method_flag = flags.DEFINE_string("method", None, "In place of the trained one.")
    imports_flag = flags.DEFINE_string("imports", None, "That register methods.")
    tokenizer_flag = flags.DEFINE_string("tokenizer", None, "In place of the run's.")
    max_tokens = flags.DEFINE_integer("max_tokens", 200, "How many tokens to draw.")
    temperature = flags.DEFINE_float("temperature", 1.0, "0 takes the likeliest token.")
    top_k = flags.DEFINE_integer("top_k", 0, "Only the k likeliest; 0 for all.")
    top_p = flags.DEFINE_float("top_p", 1.0, "Only those that hold this probability.")
    seed = flags.DEFINE_integer("seed", 0, "Of the draws.")
    cli.parse_flags()
    if not workdir_flag.value:
        raise UserError("--workdir=DIR is missing")
    given = _read_prompt(prompt_flag.value, file_flag.value)
    if not 0 <= seed.value < 2**32:
        raise UserError(f"seed={seed.value}: should be from 0 to 2^32 - 1")
    sampling = Sampling(temperature.value, top_k.value, top_p.value)

    workdir = as_path(workdir_flag.value)
    run = load_run(workdir, imports=imports_flag.value)
    model, config = run.model, run.config
    if method_flag.value:
        model, told = under_name(run, workdir, method_flag.value)
        for line in told:
            cli.warn(line)
    if model.objective != "causal_lm":
        raise UserError(
            f"workdir {workdir}: holds a masked language model; text is drawn from a decoder "
            "(config.model.family=decoder)"
        )
    tokenizer = run.open_tokenizer(tokenizer_flag.value or "", bos=bos_flag.value)
    prompt = np.asarray([*tokenizer.frame.start, *tokenizer.encode(given)], np.int32)
    check_positions(config.model, len(prompt) + max_tokens.value, "--max_tokens, with the prompt")
    model = take_apart(model, free=True)  # nothing else needs its weights
    drawn = generate(model, prompt[None], max_tokens.value, sampling=sampling, seed=seed.value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character
    sys.stdout.write(given.decode(errors="replace"))
    ids, shown = prompt.tolist(), tokenizer.decode(prompt)
    for token in drawn:
        if token[0] in tokenizer.frame.stops and not ignore_eos.value:
            break
        ids.append(int(token[0]))
        text = tokenizer.decode(np.asarray(ids, np.int32))
        # With what goes before, for a word's first piece may hold the space before it; and a
        # character may be of several tokens: it is shown when the last has come.
        if not text.endswith("\ufffd"):
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    print()


def _read_prompt(text: str | None, file: str | None) -> bytes:
    """What --prompt or --prompt_file gives, whether or not that is text.

    Raises:
      UserError: it is nothing, given twice, or cannot be read.
    """
    if text and file:
        raise UserError("--prompt and --prompt_file: should be one of them")
    if file:
        try:
            given = Path(file).read_bytes()
        except OSError as error:
            raise UserError(f"--prompt_file={file}: cannot be read ({error.strerror})") from None
        if not given:
            raise UserError(f"--prompt_file={file}: is empty")
        return given
    if text == "-":
        given = sys.stdin.buffer.read()
        if not given:
            raise UserError("--prompt=-: standard input is empty")
        return given
    if not text:
        raise UserError("--prompt=TEXT is missing or empty")
    return os.fsencode(text)  # as it was typed


if __name__ == "__main__":
    cli.guard(USAGE, main, interrupted="interrupted")
