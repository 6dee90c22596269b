"""TFDS builder over the source of the running Python's own standard library.

It is always there, needs no download, and has documents of every length: on CPython 3.11, 674 files
of 11 MB, 179 of them longer than 16 000 bytes.
"""

import hashlib
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from lenext.errors import UserError

# Not the library: its tests, what was installed beside it, bytecode, and IDLE, an application (half
# of it tests) that merely ships in the same folder and that several distributions leave out.
EXCLUDED_DIRECTORIES = frozenset(
    {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib"}
)


def stdlib_root() -> Path:
    """Returns the folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(root: Path) -> list[str]:
    """Lists the .py files under `root`, tests and installed packages left out.

    Returns:
      Paths relative to `root`, with forward slashes, sorted.

    Raises:
      UserError: there are none, as where the library is a zip file or bytecode only.
    """
    paths = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in EXCLUDED_DIRECTORIES]
        relative = Path(folder).relative_to(root)
        paths += [(relative / name).as_posix() for name in files if name.endswith(".py")]
    if not paths:
        raise UserError(
            f"stdlib_source: no .py file under {root}; use a Python that has its library's source"
        )
    return sorted(paths)


def source_fingerprint(root: Path) -> str:
    """Returns 12 hex digits of the sha256 of the paths and contents of `source_files(root)`."""
    digest = hashlib.sha256()
    for path in source_files(root):
        content = (root / path).read_bytes()
        # The length keeps one file's end from being read as the next one's beginning.
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def split_of(path: str) -> str:
    """Assigns a relative path to "validation" (a tenth) or "train", by its sha256.

    A path keeps its split across platforms and Python versions, so a model is not validated on an
    older copy of a file that it was trained on.
    """
    in_tenth = int(hashlib.sha256(path.encode()).hexdigest(), 16) % 10
    return "validation" if in_tenth == 0 else "train"


class StdlibSource(tfds.core.GeneratorBasedBuilder):
    """Source files of the running Python's standard library, one a document.

    Features: `path`, relative to the library's folder, and `text`, the file's bytes as they are.
    The config's name carries the Python version and the sources' fingerprint, so a prepared copy
    is never stale: other sources are another config, in another folder.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir=None, config=None, version=None):
        self.root = stdlib_root()
        self.fingerprint = source_fingerprint(self.root)
        if config is None:
            python = f"{sys.implementation.name}-{platform.python_version()}"
            config = tfds.core.BuilderConfig(name=f"{python}-{self.fingerprint}")
        super().__init__(data_dir=data_dir, config=config, version=version)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Source of the standard library of the Python that prepared it.",
            homepage="https://docs.python.org/3/library/",
            features=tfds.features.FeaturesDict(
                {"path": tfds.features.Text(), "text": tfds.features.Text()}
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for path in source_files(self.root):
            if split_of(path) == split:
                yield path, {"path": path, "text": (self.root / path).read_bytes()}
