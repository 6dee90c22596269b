"""Buckets of Google Cloud Storage and of S3: workdirs such as gs://BUCKET/run and s3://BUCKET/run.

A path in a bucket is etils' epath.Path, which Orbax takes too; `as_path` makes one. Nothing is ever
renamed there: a folder is only a common beginning of objects' names, and moving it copies each.
"""

import functools
import importlib
import os
import traceback
from pathlib import Path
from typing import Any

import fsspec.config
from etils import epath

from lenext.errors import UserError, reason_of

AnyPath = Path | epath.Path
"""Of a file or folder, on a disk or in a bucket."""

PACKAGES = {"gs://": ("gcsfs", "google.cloud.storage"), "s3://": ("s3fs",)}
"""What reads and writes them; TensorStore, which Orbax is built on, brings its own."""
RAISING = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "google", "requests", "s3fs", "urllib3")
"""Packages that raise what a bucket that cannot be used is noticed by."""
AGAIN = 8
"""Tries of a request to S3, with pauses between them that double up to 20 s."""


def in_bucket(path: AnyPath | str) -> bool:
    """Whether a path is one in a bucket."""
    return str(path).startswith(tuple(PACKAGES))


def as_path(text: str | AnyPath) -> AnyPath:
    """The path that a user gave.

    Raises:
      UserError: it names a bucket that is not there or cannot be read, or none, or packages are
        missing.
    """
    if not in_bucket(text):
        return Path(text)
    path = epath.Path(text)
    scheme, _, rest = str(path).partition("://")
    bucket, _, folder = rest.partition("/")
    if not bucket or not folder:
        raise UserError(f"{text}: should be {scheme}://BUCKET/FOLDER")
    files = filesystem(path)
    try:
        try:
            files.ls(str(path))
        except FileNotFoundError:  # of either
            files.info(f"{scheme}://{bucket}")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no bucket {bucket}") from None
    except Exception as error:
        if not is_of_bucket(error):
            raise
        raise UserError(f"{path}: the bucket cannot be read ({reason_of(error)})") from None
    return path


def resolved(path: AnyPath) -> AnyPath:
    """The absolute path; one in a bucket is one."""
    return path if in_bucket(path) else path.resolve()


def on_disk(text: str, name: str) -> Path:
    """The path that a user gave as `name`, of what can only stand on a disk.

    Raises:
      UserError: it is one in a bucket.
    """
    if in_bucket(text):
        raise UserError(f"{name}={text}: should be a folder on a disk")
    return Path(text)


def filesystem(path: AnyPath | str) -> Any:
    """fsspec's file system of a path in a bucket, as epath has it too.

    Raises:
      UserError: a package is missing.
    """
    scheme = str(path)[:5]
    _prepare(scheme)
    return fsspec.filesystem("gcs" if scheme == "gs://" else "s3")


def is_of_bucket(error: BaseException) -> bool:
    """Whether an exception comes out of the packages that read and write buckets."""
    frames = traceback.walk_tb(error.__traceback__)
    modules = [type(error).__module__, *(f.f_globals.get("__name__", "") for f, _ in frames)]
    return any(name.split(".")[0] in RAISING for name in modules)


@functools.cache
def _prepare(scheme: str) -> None:
    """Makes the packages ready, once.

    Raises:
      UserError: one is missing.
    """
    # A newer way to look at a kind of bucket, which warns at each file where it may not.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        for package in PACKAGES[scheme]:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        wanted = " ".join(package.replace(".", "-") for package in PACKAGES[scheme])
        raise UserError(
            f"{scheme}…: takes the package {error.name}: python -m pip install -c requirements.txt "
            f"{wanted}"
        ) from None
    os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow's own way, where it is installed
    # Other processes write there, too: what was listed once is not what is there now.
    own: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "gs://":
        fsspec.config.conf.setdefault("gcs", {}).update(own)
        return
    own["config_kwargs"] = {"retries": {"max_attempts": AGAIN, "mode": "standard"}}
    fsspec.config.conf.setdefault("s3", {}).update(own)
    _teach_orbax_s3()


def _teach_orbax_s3() -> None:
    """Makes Orbax treat s3:// as it treats gs://: by commit files, through TensorStore's driver.

    Orbax 0.12 knows buckets of one kind by name, though the driver for the other is there.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    if "s3://" in gcs_utils._GCS_PATH_PREFIX:
        return
    of_gcs, normalized = gcs_utils.get_kvstore_for_gcs, tensorstore_utils._normalize_path

    def get_kvstore(path: str) -> dict[str, Any]:
        if not path.startswith("s3://"):
            return of_gcs(path)
        bucket, inside = gcs_utils.split_gcs_path(path)
        spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": inside}
        # botocore, which s3fs is built on, reads these; TensorStore's driver is told.
        for key, names in {
            "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            "aws_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        }.items():
            said = next(filter(None, map(os.environ.get, names)), None)
            spec |= {key: said} if said else {}
        if os.environ.get("AWS_ACCESS_KEY_ID"):  # else it complains of files that need not be there
            spec["aws_credentials"] = {"type": "environment"}
        return spec

    gcs_utils._GCS_PATH_PREFIX = ("gs://", "s3://")
    gcs_utils.get_kvstore_for_gcs = get_kvstore
    tensorstore_utils._use_gcs_driver = in_bucket
    tensorstore_utils._normalize_path = lambda path: normalized(path).replace("s3:/", "s3://")


def checksums(folder: AnyPath) -> dict[str, tuple[int, str]]:
    """Of each object below a folder, by its name there: bytes, and the bucket's own checksum."""
    files = filesystem(folder)
    start = files._strip_protocol(str(folder)) + "/"
    found = files.find(str(folder), detail=True)
    return {
        name.removeprefix(start): (
            info["size"],
            f"crc32c:{info['crc32c']}" if "crc32c" in info else f"etag:{info['ETag']}",
        )
        for name, info in sorted(found.items())
    }
