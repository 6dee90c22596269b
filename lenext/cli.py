"""What the entry points share: flags, one-line errors, exit codes."""

import difflib
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
from lenext.buckets import AnyPath, as_path, is_of_bucket
from lenext.config import Config, base_config, to_config
from lenext.config.imports import join_imports, load, load_file, told_of
from lenext.errors import Stopped, TrainingError, UserError, one_line, reason_of
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
    entry: Callable[[ml_collections.ConfigDict, AnyPath], Any],
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
        entry(config, as_path(workdir_flag.value))

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
    stored = read_run_config(as_path(workdir))
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
    found = ""
    words = sys.argv[1:]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            found = value if equals else following
    return found


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
    except Exception as error:
        if not is_of_bucket(error):
            raise
        _fail(
            f"the bucket cannot be used ({reason_of(error)}); the same command goes on from what "
            "is written", EXIT_AGAIN,
        )  # fmt: skip


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
    rest = _parsed(sys.argv)
    if rest and not words:
        raise UserError(f"argument {rest[0]!r}: should be a flag such as --workdir=DIR")
    return rest


def _parse(stored: Config | None) -> Config:
    """The config that the command line names, with its overrides; of a run, as `run` says.

    A file that registers methods is one of the config's imports.
    """
    given, known = _peek("config"), set(CATALOGUE)
    file, colon, argument = given.partition(":")
    if file:
        config = _of_file(Path(file), *[argument] * bool(colon))
    elif stored is not None and not given:
        config = stored
    else:
        raise UserError("--config=configs/NAME.py[:ARGUMENT] is missing")
    argv = _without(sys.argv, "config")
    check_overrides(config, argv)
    try:
        flag = config_flags.DEFINE_config_dict("config", config, sys_argv=argv)
    except flags.Error as error:  # a --flagfile that cannot be read
        raise UserError(_reason(error)) from None
    rest = _parsed(argv, config)
    config = flag.value
    if rest:
        raise UserError(f"argument {rest[0]!r}: should be a flag such as --config.key=value")
    if CATALOGUE.keys() - known:
        config.imports = join_imports(config.imports, file)
    if stored is None or not file:
        return config
    # Of a run and a file: what to evaluate from the file, all else from the run, and what the
    # command line says on top.
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    if "imports" not in overrides:  # or the run's files may have moved
        config.imports = join_imports(stored.imports, config.imports)
    stored.imports, stored.eval = config.imports, config.eval
    stored.update_from_flattened_dict({k: v for k, v in overrides.items() if k != "imports"})
    return stored


def _of_file(path: Path, *argument: str) -> Config:
    """What `get_config` of a config file gives.

    Raises:
      UserError: there is no such file, it raises, or that is no config.
    """
    if not path.is_file():
        there = [str(file) for file in path.parent.glob("*.py")]
        near = difflib.get_close_matches(str(path), there, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--config={path}: there is no such file{meant}")
    module = load_file(path)
    make = getattr(module, "get_config", None)
    if not callable(make):
        raise UserError(f"--config={path}: should define get_config")
    with told_of(path):
        config = make(*argument)
    if not isinstance(config, ml_collections.ConfigDict) or config.keys() != base_config().keys():
        raise UserError(
            f"--config={path}: get_config should give a lenext.config.base_config(), with other "
            f"values; it gave {'another' if hasattr(config, 'keys') else type(config).__name__}"
        )
    return config


def _without(argv: list[str], name: str) -> list[str]:
    """The command line without a flag that has a value."""
    left, skipped = [], False
    for word in argv:
        flag, equals, _ = word.partition("=")
        named = flag in (f"--{name}", f"-{name}")
        if not skipped and not named:
            left.append(word)
        skipped = named and not equals and not skipped
    return left


def check_overrides(config: Config, argv: list[str]) -> None:
    """Checks that what --config.KEY=VALUE names are keys of a config.

    Raises:
      UserError: naming the first that is none, and what may have been meant.
    """
    there = _keys(config)
    sections = {key.rpartition(".")[0] for key in there} - {""}
    for word in argv[1:]:
        key = word.partition("=")[0].lstrip("-").removeprefix("no")
        if not word.startswith("-") or not key.startswith("config."):
            continue
        key = key.removeprefix("config.")
        if key in sections:
            keys = [name for name in there if name.rpartition(".")[0] == key]
            raise UserError(
                f"config.{key}: is a section; override its keys, such as --config.{keys[0]}"
            )
        if key not in there:
            raise UserError(f"config has no key {key}{_meant(key, there)}")


def _keys(config: Config, path: str = "") -> list[str]:
    """All keys of a config, such as "training.steps"."""
    return [
        key
        for name, value in config.items()
        for key in (_keys(value, f"{path}{name}.") if hasattr(value, "items") else [path + name])
    ]


def _meant(key: str, there: list[str]) -> str:
    """The keys that a wrong one, of a config, may stand for."""
    found = [name for name in there if f".{name}".endswith(f".{key}")]
    # Names of one key in several sections, or else the nearest.
    found = found or [x for x in there if x.rpartition(".")[2] == key.rpartition(".")[2]]
    found = found or difflib.get_close_matches(key, there, 1, 0.75)
    last = {name.rpartition(".")[2]: name for name in reversed(there)}
    near = difflib.get_close_matches(key.rpartition(".")[2], last, 1, 0.75)
    found = found or [last[name] for name in near]
    return (
        f"; did you mean {' or '.join(f'--config.{name}' for name in found[:3])}?" if found else ""
    )


def _parsed(argv: list[str], config: Config | None = None) -> list[str]:
    """Parses flags, those of a config too, and gives the words that are none.

    Raises:
      UserError: for unknown flags, and values of another type.
    """
    try:
        return flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        near = difflib.get_close_matches(name, list(flags.FLAGS), 1)
        meant = f"; did you mean --{near[0]}?" if near else ""
        if config is not None and not meant:
            meant = _meant(name, _keys(config))
        raise UserError(f"Unknown command line flag {name!r}{meant}") from None
    except (flags.Error, AttributeError, LookupError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(_reason(error)) from None


WORDS = {
    "invalid literal for int()": "should be a whole number",
    "could not convert string to float": "should be a number",
    "Non-boolean argument": "should be true or false",
}
"""What Python and absl say of a value, and what it should be."""


def _reason(error: Exception) -> str:
    """What the user did wrong, out of what absl and ml_collections wrap around it."""
    cause = error
    while cause.args and isinstance(cause.args[0], Exception):
        cause = cause.args[0]
    message = str(cause)
    for said, should in WORDS.items():
        if said in message and message.startswith("flag --"):
            flag = message.partition(": ")[0]
            value = flag.partition("=")[2]
            return f"{flag}: {should}{_whole(value) if 'whole' in should else ''}"
    return message


def _whole(text: str) -> str:
    """For what is a whole number in other words, those to write."""
    try:
        number = float(text)
    except ValueError:
        return ""
    return f"; did you mean {number:.0f}?" if number.is_integer() and abs(number) < 2**53 else ""


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
    print(f"error: {one_line(str(error))}", file=sys.stderr, flush=True)
