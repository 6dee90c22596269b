"""Users' own code, imported before method strings are read: `config.imports`."""

import hashlib
import importlib
import sys
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

    A file that has not changed is imported once. What it registers takes the place of what was
    registered under the same names before.

    Args:
      imports: files and modules, with commas.

    Raises:
      UserError: for one that is not there, or fails.
    """
    for member in split_imports(imports):
        try:
            if member.endswith(".py"):
                _load_file(Path(member).absolute())
            else:
                importlib.import_module(member)
        except Exception as error:
            reason = " ".join(str(error).split()) or "no message"
            if isinstance(error, OSError):
                reason = error.strerror or reason
            elif not isinstance(error, UserError):
                reason = f"{type(error).__name__}: {reason}"
            raise UserError(f"config.imports: {member} cannot be imported ({reason})") from None


def _load_file(path: Path) -> None:
    source = path.read_bytes()
    # Two files of one name are two modules; classes find theirs by its name.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__source__", None) == source:
        return
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    module.__source__ = source  # pyright: ignore[reportAttributeAccessIssue]
