"""Users' own code, imported before method strings are read: `config.imports`."""

import contextlib
import hashlib
import importlib
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lenext.attention.catalogue import CATALOGUE, Entry
from lenext.errors import UserError


def split_imports(imports: str) -> list[str]:
    """The members of a list with commas."""
    return [word.strip() for word in imports.split(",") if word.strip()]


def join_imports(*imports: str) -> str:
    """Several lists as one, each member once, files by their absolute paths.

    A run keeps them so: it may be evaluated from another folder.
    """
    members = [word for each in imports for word in split_imports(each)]
    found = [str(Path(x).absolute()) if x.endswith(".py") else x for x in members]
    return ",".join(dict.fromkeys(found))


def load(imports: str) -> None:
    """Imports each member: a file that ends in .py, or a module.

    What it registers takes the place of what was registered under the same names before.

    Args:
      imports: files and modules, with commas.

    Raises:
      UserError: for one that is not there, or fails.
    """
    for member in split_imports(imports):
        try:
            if member.endswith(".py"):
                load_file(Path(member))
            else:
                importlib.import_module(member)
        except UserError as error:
            raise UserError(f"config.imports: {error}") from None
        except (Exception, SystemExit) as error:
            raise UserError(f"config.imports: {member}: {_said(error)}") from None


class _Loaded(NamedTuple):
    """A file as it was executed, and what it registered."""

    source: bytes
    module: types.ModuleType
    entries: dict[str, Entry]


_loaded: dict[str, _Loaded] = {}


def load_file(path: Path) -> types.ModuleType:
    """The module that a user's file is; it may import what stands beside it.

    One that has not changed is executed once, but its methods are registered again: another file
    may have taken their names since.

    Raises:
      UserError: there is no such file, or it raises.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    # Two files of one name are two modules; classes find theirs by its name.
    whole = path.absolute()
    name = f"{path.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"
    found = _loaded.get(name)
    if found is not None and found.source == source:
        CATALOGUE.update(found.entries)
        return found.module
    module, before = types.ModuleType(name), dict(CATALOGUE)
    module.__file__ = str(whole)
    # Dataclasses and inspect look a class's module up here, while the file still runs.
    sys.modules[name] = module
    sys.path.insert(0, str(whole.parent))
    try:
        with told_of(path):
            exec(compile(source, str(whole), "exec"), module.__dict__)
    except UserError:
        del sys.modules[name]
        CATALOGUE.clear()
        CATALOGUE.update(before)
        raise
    finally:
        sys.path.remove(str(whole.parent))
    entries = {key: entry for key, entry in CATALOGUE.items() if before.get(key) is not entry}
    _loaded[name] = _Loaded(source, module, entries)
    return module


@contextlib.contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Makes one line of what a user's file raises, and where.

    Raises:
      UserError: it has raised something; one of its own stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        whole = str(path.absolute())
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == whole]
        if isinstance(error, SyntaxError) and error.filename == whole:
            lines = [error.lineno]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {_said(error)}") from None


def _said(error: BaseException) -> str:
    return f"raised {type(error).__name__}: {' '.join(str(error).split())}"
