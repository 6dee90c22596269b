"""Prepared datasets that were put into a bucket, brought to this machine's disk once."""

import os
import uuid
from pathlib import Path

from lenext.buckets import as_path, checksums, in_bucket
from lenext.files import copy_file

TOKENS = "lenext_tokens"
"""Folder beside the datasets, of tokens (`lenext.data.token_cache`)."""


def brought(data_dir: str | Path | None, dataset: str) -> str | Path | None:
    """A `data_dir` on a disk, for one that may be in a bucket.

    Of one in a bucket, files of the dataset and tokens that are not there yet are copied to
    $XDG_CACHE_HOME/lenext (~/.cache/lenext). What the bucket does not hold is prepared there.

    Args:
      data_dir: as `lenext.data.load_corpus` takes it.
      dataset: the name of its folder.

    Raises:
      UserError: there is no such bucket, or it cannot be read.
    """
    if data_dir is None or not in_bucket(str(data_dir)):
        return data_dir
    source = as_path(str(data_dir))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    here = cache / "lenext" / str(source).replace("://", "/")
    for part in (dataset, TOKENS):
        for name, (size, _) in checksums(source / part).items():
            file = here / part / name
            if file.exists() and file.stat().st_size == size:
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")  # processes may all be here
            copy_file(source / part / name, beside)
            beside.replace(file)
    return here
