"""Users' own code, imported before method strings are read: `config.imports`."""

import hashlib
import importlib
import sys
import traceback
import types
from pathlib import Path

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


def load_file(path: Path) -> types.ModuleType:
    """The module that a user's file is; one that has not changed is executed once.

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
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__source__", None) == source:
        return loaded
    module = types.ModuleType(name)
    module.__file__ = str(whole)
    module.__source__ = source  # pyright: ignore[reportAttributeAccessIssue]
    # Dataclasses and inspect look a class's module up here, while the file still runs.
    sys.modules[name] = module
    try:
        exec(compile(source, str(whole), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(whole)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {_said(error)}") from None
    return module


def _said(error: BaseException) -> str:
    return f"raised {type(error).__name__}: {' '.join(str(error).split())}"
