"""Seals of checkpoints: what each of their files held when it was written.

A seal is DIR/seals/STEP.json, {"file": [bytes, SHA-256], ...}. A file that was cut short or in
which a bit has turned does not fit it any more. Of an object in a bucket it has the checksum that
the bucket keeps, such as "etag:…", so that none is read back; where a run has moved to a place with
other checksums, bytes alone are held against the seal.
"""

import hashlib
import json
from pathlib import Path

from lenext.buckets import AnyPath, checksums, in_bucket
from lenext.errors import MISREAD
from lenext.files import make_folder, write_atomically


def seal(checkpoint: AnyPath, path: AnyPath) -> None:
    """Writes the seal of a complete checkpoint."""
    make_folder(path.parent)
    write_atomically(path, _text(checkpoint))


def identity(checkpoint: AnyPath, path: AnyPath) -> str:
    """SHA-256 of a checkpoint's seal, or of what that would say where there is none."""
    text = path.read_text() if path.exists() else _text(checkpoint)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(checkpoint: AnyPath) -> str:
    """What a seal says."""
    found = {
        name: [size, digest or _digest(Path(checkpoint, name))]
        for name, (size, digest) in _files(checkpoint).items()
    }
    return json.dumps(found, indent=0) + "\n"


def _files(checkpoint: AnyPath) -> dict[str, tuple[int, str]]:
    """Of each file of a checkpoint, by its name there: bytes, and in a bucket its checksum."""
    if in_bucket(checkpoint):
        return checksums(checkpoint)
    files = (file for file in sorted(Path(checkpoint).rglob("*")) if file.is_file())
    return {str(file.relative_to(checkpoint)): (file.stat().st_size, "") for file in files}


def damage(checkpoint: AnyPath, path: AnyPath) -> str | None:
    """The first file of a checkpoint that is not what its seal says, in words; None if all are.

    A checkpoint without a seal, whose run was killed before it got one, is taken as it is.
    """
    if not path.exists():
        return None
    try:
        said = [(str(name), *of) for name, of in json.loads(path.read_text()).items()]
        sealed = [(name, size, str(digest)) for name, size, digest in said]
    except (OSError, *MISREAD):
        return f"{path} is no seal"
    files = _files(checkpoint)
    for name, size, digest in sealed:
        if name not in files:
            return f"{name} is missing"
        there, found = files[name]
        if there != size:
            return f"{name} has {there} bytes and was written with {size}"
        kind = digest.rpartition(":")[0]
        if not found and not kind:
            found = _digest(Path(checkpoint, name))
        if found and found.rpartition(":")[0] == kind and found != digest:
            return f"{name} has changed since it was written"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
