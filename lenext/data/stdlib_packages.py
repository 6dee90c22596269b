"""TFDS builder over whole packages of the standard library: documents of several 100 000 bytes.

`stdlib_source` has a file a document, few of them longer than 100 000 bytes. Here a document is all
of a package, which is as long a text as the library has to offer on one matter, for training and
evaluation at 65 536 tokens and more.
"""

import itertools
from collections.abc import Iterator

from lenext.data.stdlib_source import StdlibSource, source_files

# First letters of the modules that belong to no package, which are joined by these: one by one they
# are short, and they are almost half of the library.
MODULE_GROUPS = ("_", "a-c", "d-h", "i-o", "p-r", "s-t", "u-z")
# By name, not by hash: few documents are this long, and validation is to have a good part of them,
# on all versions of Python. The modules from s to t are more than 2^20 bytes. lib2to3 stands here
# since its tokenize.py is an older copy of the one in s-t.
VALIDATION = frozenset(
    {"asyncio", "email", "http", "lib2to3", "logging", "modules/s-t", "unittest"}
)


def packages(files: list[str]) -> dict[str, list[str]]:
    """Groups source files by package, and those outside packages by their first letter.

    Args:
      files: paths relative to the library's folder.

    Returns:
      Sorted paths by a document's name: "asyncio", "modules/s-t". Folders that are no package, such
      as config-3.11-x86_64-linux-gnu, are left out.
    """
    found: dict[str, list[str]] = {}
    names = set(files)
    for path in sorted(files):
        package = path.partition("/")[0]
        if package == path:
            found.setdefault(f"modules/{_group_of(path)}", []).append(path)
        elif f"{package}/__init__.py" in names:
            found.setdefault(package, []).append(path)
    return found


def split_of_package(name: str) -> str:
    """Returns the split of a document."""
    return "validation" if name in VALIDATION else "train"


class StdlibPackages(StdlibSource):
    """Packages of the running Python's standard library, one a document.

    Features: `path`, the document's name (see `packages`), and `text`, its files' bytes in the
    order of their paths, with a line end between them. What it shares with `stdlib_source` is the
    text, not the splits: a model trained on the one is not to be evaluated on the other.
    """

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for name, paths in packages(source_files(self.root)).items():
            if split_of_package(name) == split:
                text = b"\n".join((self.root / path).read_bytes() for path in paths)
                yield name, {"path": name, "text": text}


def _group_of(module: str) -> str:
    """The last of MODULE_GROUPS that begins at or before the module's first letter."""
    letter = module[0].lower()
    if not letter.isalpha():
        return MODULE_GROUPS[0]
    *_, group = itertools.takewhile(lambda group: group[0] <= letter, MODULE_GROUPS)
    return group
