"""What the entry points share: flags, one-line errors, exit codes."""

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from lenext import interrupts
from lenext.attention import overruled_parts
from lenext.attention.catalogue import CATALOGUE
from lenext.attention.grammar import split_list
from lenext.config import Config, base_config, to_config
from lenext.config.imports import join_imports, load
from lenext.errors import Stopped, TrainingError, UserError
from lenext.parallel import processes
from lenext.workdirs.workdir import read_run_config

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_AGAIN = 75


USAGE = """{purpose}

  --config=FILE[:ARGUMENT]   a config file: configs/quickstart.py, configs/decoder.py:lssar
                             (default: that of the run in --workdir)
  --config.KEY=VALUE         overrides one of its keys; lenext/config/{{base,model}}.py list them
  --workdir=DIR              folder of the run
  --distributed              this is one of several processes, which launch/ starts"""


def run(
    purpose: str,
    entry: Callable[[ml_collections.ConfigDict, Path], Any],
    *,
    told: Callable[[Config], list[str]],
    evaluates: bool = False,
) -> None:
    """Parses --config and --workdir, calls `entry`, and exits; see `guard`.

    Args:
      purpose: what is done, for --help.
      entry: what does it.
      told: the lists of methods in a config whose parts that change nothing are told.
      evaluates: of a --config, only the section `eval` counts; all else is that of the run in
        --workdir. Without one, the run's config is taken whole, here as in training.
    """

    def main() -> None:
        workdir_flag = flags.DEFINE_string("workdir", None, "Folder of the run.")
        distributed_flag = flags.DEFINE_bool("distributed", False, "One of several processes.")
        config = _parse(_config_of_run(evaluates=evaluates))
        config.imports = join_imports(config.imports)
        load(config.imports)
        tell_overruled(told(config))
        if not workdir_flag.value:
            raise UserError("--workdir=DIR is missing")
        if distributed_flag.value:
            processes.join()
        entry(config, Path(workdir_flag.value))

    guard(
        USAGE.format(purpose=purpose),
        main,
        interrupted="interrupted; the same command goes on from what is written",
    )


def _config_of_run(*, evaluates: bool) -> ml_collections.ConfigDict | None:
    """The config of the run in --workdir; None where there is none, or another is given to train.

    Raises:
      UserError: the workdir holds no run, and there is no --config to check beforehand.
    """
    workdir = _peek("workdir")
    if not workdir or (_peek("config") and not evaluates):
        return None
    stored = read_run_config(Path(workdir))
    if stored is None and _peek("config"):
        return None
    if stored is None:
        begin = "train there first" if evaluates else "begin one by --config=configs/NAME.py"
        raise UserError(f"workdir {workdir}: holds no run; {begin}")
    config = to_config(stored)
    if evaluates:  # the devices here need not be those that it was trained on
        config.mesh = base_config().mesh
    return config


def _peek(name: str) -> str:
    """A flag's value before flags are parsed, in any form that absl takes; "" where it is not."""
    words = sys.argv[1:]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            return value if equals else following
    return ""


def guard(usage: str, main: Callable[[], None], *, interrupted: str) -> None:
    """Calls `main` and exits, or prints `usage` where help was asked for.

    Exit codes: 0; 2 with one line on stderr for what the user can mend; 1 with one line for a run
    that failed by itself; 75 with one line for a run that was stopped from outside, and goes on
    when it is started again; 130 after Ctrl-C, with the line `interrupted` or one that says more.
    A second Ctrl-C ends at once. Anything else is a bug and keeps its traceback.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage)
        return
    logging.getLogger().setLevel(logging.WARNING)
    # What they log of a write that has failed, with tracebacks, comes here as an error, too.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with interrupts.Interrupts() as listening:
        sys.unraisablehook = functools.partial(_unraisablehook, listening)
        _end_as_told(main, interrupted)


def _end_as_told(main: Callable[[], None], interrupted: str) -> None:
    try:
        main()
    except UserError as error:
        _fail(error, EXIT_USAGE)
    except TrainingError as error:
        _fail(error, EXIT_FAILED)
    except Stopped as error:
        _fail(error, EXIT_AGAIN)
    except (*processes.PEER_LOST, ValueError) as error:
        if not processes.is_peer_lost(error):
            raise
        reason = str(error).splitlines()[0]
        _fail(
            f"another process was lost ({reason}); the same command resumes from the last "
            "checkpoint", EXIT_AGAIN,
        )  # fmt: skip
    except KeyboardInterrupt as error:
        _say(str(error) or interrupted)
        interrupts.end(interrupts.EXIT)
    # Whoever read stdout has seen enough: nothing to say, nowhere to say it.
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


def end_on_sigterm() -> None:
    """Makes SIGTERM an end like any other, which leaves nothing half-written behind."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def tell_overruled(lists: list[str]) -> None:
    """A line on stderr for each part of a method that changes nothing, in lists of methods.

    Those that cannot be read are left to whoever reads them next.
    """
    try:
        texts = [text for each in lists for text in split_list(each)]
        said = [line for text in texts for line in overruled_parts(text)]
    except ValueError:
        return
    for line in dict.fromkeys(said):
        warn(line)


def parse_flags(*, words: bool = False) -> list[str]:
    """Parses the command line into the flags defined so far, and gives the words that are none.

    Raises:
      UserError: for unknown flags, values of another type, and such words unless `words` allows
        them.
    """
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.Error as error:
        raise UserError(_reason(error)) from None
    if rest and not words:
        raise UserError(f"argument {rest[0]!r}: should be a flag such as --workdir=DIR")
    return rest


def _parse(stored: Config | None) -> Config:
    """The config that the command line names, with its overrides; of a run, as `run` says.

    A file that registers methods is one of the config's imports.
    """
    file, known = _peek("config"), set(CATALOGUE)
    try:
        if stored is None or file:
            config_flag = config_flags.DEFINE_config_file("config", None, "Config file[:argument].")
        else:
            config_flag = config_flags.DEFINE_config_dict("config", stored)
        rest = flags.FLAGS(sys.argv)[1:]
        config: Config = config_flag.value
        if config is not None:
            config.keys()  # a config that failed to load says so only when it is used
    except (
        flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError,
    ) as error:  # fmt: skip
        raise UserError(_reason(error)) from None
    if rest:
        raise UserError(f"argument {rest[0]!r}: should be a flag such as --config.key=value")
    if config is None:
        raise UserError("--config=configs/NAME.py[:ARGUMENT] is missing")
    if CATALOGUE.keys() - known:
        config.imports = join_imports(config.imports, file.partition(":")[0])
    if stored is None or not file:
        return config
    # Of a run and a file: what to evaluate from the file, all else from the run, and what the
    # command line says on top.
    given = config_flags.get_override_values(flags.FLAGS["config"])
    if "imports" not in given:  # or the run's files may have moved
        config.imports = join_imports(stored.imports, config.imports)
    stored.imports, stored.eval = config.imports, config.eval
    stored.update_from_flattened_dict({k: v for k, v in given.items() if k != "imports"})
    return stored


def _reason(error: Exception) -> str:
    """What the user did wrong, out of what absl and ml_collections wrap around it."""
    cause = error
    while cause.args and isinstance(cause.args[0], Exception):
        cause = cause.args[0]
    message = str(cause.args[0]) if isinstance(cause, KeyError) else str(cause)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if isinstance(error, KeyError | AttributeError):
        return f"config has no key {' '.join(lines)}"
    if isinstance(error, SyntaxError):
        return f"config file: {message}"
    if "Traceback" in message:  # the config file raised
        raised = [line for line in lines if "Error" in line]
        return raised[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
    if isinstance(error, OSError):
        return f"config file: {lines[-1]}"
    return message


def _unraisablehook(listening: interrupts.Interrupts, unraisable: Any) -> None:
    """Python's own, but for an end that was asked for, and for what TensorStore's threads go on to
    say of a write that has failed."""
    if listening.raise_again(unraisable.exc_type):
        return
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _fail(error: object, code: int) -> None:
    _say(error)
    if jax.distributed.is_initialized():
        interrupts.end(code)  # an orderly one would wait for the others, and they for this one
    sys.exit(code)


def _say(error: object) -> None:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr, flush=True)
