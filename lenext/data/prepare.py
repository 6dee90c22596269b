"""Writes a TFDS dataset once, quietly, and opens it."""

import contextlib
import functools
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import tensorflow_datasets as tfds

from lenext.errors import UserError

log = logging.getLogger(__name__)
Builder = TypeVar("Builder", bound=tfds.core.DatasetBuilder)


def open_builder(
    make_builder: Callable[..., Builder], data_dir: str | Path | None = None
) -> Builder:
    """Returns `make_builder(data_dir=data_dir)`, prepared as array_record if it was not yet.

    Several processes may call it at once: each writes to a folder of its own and renames that, and
    those that come second use what the first one wrote.

    Args:
      make_builder: a TFDS builder class.
      data_dir: where datasets are kept; None is TFDS's own choice, TFDS_DATA_DIR or
        ~/tensorflow_datasets.

    Raises:
      UserError: `data_dir` cannot be written to.
    """
    with _quiet_tfds():
        builder = make_builder(data_dir=data_dir)
    # Not whether the folder exists: it may have come since the builder was made.
    if builder.info.splits:
        return builder
    log.info("preparing %s in %s", builder.info.full_name, builder.data_dir)
    with _quiet_tfds():
        try:
            builder.download_and_prepare(file_format="array_record")
        except OSError as error:
            if not builder.data_path.exists():
                raise UserError(
                    f"cannot prepare {builder.info.full_name} in {builder.data_dir}: {error}; "
                    "give a writable data_dir or set TFDS_DATA_DIR"
                ) from error
        # A builder reads what its folder holds when it is made, and another process may have won.
        return make_builder(data_dir=data_dir)


def open_named(name: str, data_dir: str | Path | None = None) -> tfds.core.DatasetBuilder:
    """Returns TFDS's builder of that name, prepared as array_record if it was not yet.

    Args:
      name: "NAME" or "NAME/CONFIG", as `tfds.load` takes it.
      data_dir: as `open_builder`'s.

    Raises:
      UserError: there is none of that name, or it cannot be prepared.
    """
    make_builder = functools.partial(tfds.builder, name, try_gcs=False)
    try:
        with _quiet_tfds():
            make_builder(data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"unknown dataset 'tfds:{name}': TensorFlow Datasets has none of that name, and "
            f"{data_dir or 'its data_dir'} holds none"
        ) from None
    except Exception as error:  # ValueError, AssertionError, … for names, versions and configs
        raise UserError(f"cannot open dataset 'tfds:{name}': {_first_line(error)}") from error
    try:
        return open_builder(make_builder, data_dir)
    except UserError:
        raise
    except Exception as error:  # a builder may do anything: download, import, run Beam
        raise UserError(
            f"cannot prepare dataset 'tfds:{name}': {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silences what TFDS says on stdout, in bars and through absl; errors are still logged."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(level)
