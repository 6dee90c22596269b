"""What the entry points share: flags, one-line errors, exit codes."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from lenext.errors import TrainingError, UserError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def run(entry: Callable[[ml_collections.ConfigDict, Path], Any]) -> None:
    """Parses --config and --workdir, calls `entry`, and exits.

    Exit codes: 0; 2 with one line on stderr for what the user can mend; 1 with one line for a run
    that failed by itself. Anything else is a bug and keeps its traceback.
    """
    app.define_help_flags()
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "Config file, with an argument after a colon; --config.key=value overrides."
    )
    workdir_flag = flags.DEFINE_string("workdir", None, "Folder of the run.")
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger().setLevel(logging.WARNING)
    try:
        config = _parse(config_flag)
        if workdir_flag.value is None:
            raise UserError("--workdir=DIR is missing")
        entry(config, Path(workdir_flag.value))
    except UserError as error:
        _fail(error, EXIT_USAGE)
    except TrainingError as error:
        _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        _fail("interrupted; the same command resumes from the last checkpoint", EXIT_INTERRUPTED)


def _parse(config_flag: flags.FlagHolder) -> ml_collections.ConfigDict:
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(str(error) if not isinstance(error, KeyError) else error.args[0]) from None
    if rest:
        raise UserError(f"argument {rest[0]!r}: should be a flag such as --config.key=value")
    if config_flag.value is None:
        raise UserError("--config=configs/NAME.py[:ARGUMENT] is missing")
    return config_flag.value


def _fail(error: object, code: int) -> None:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)
