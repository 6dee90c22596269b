"""Who imports whom, and what comes along: as CONTRIBUTING.md says."""

import ast
import subprocess
import sys

import pytest

from tests.training.common import REPOSITORY

ROOMS = {
    # A room, and those of lenext that it may import besides itself.
    "errors": (),
    "buckets": ("errors",),
    "files": ("buckets", "errors"),
    "interrupts": (),
    "attention": (),
    "config": ("attention", "errors"),
    "parallel": ("config", "errors"),
    "models": ("attention", "config", "errors", "parallel", "workdirs"),
    "data": ("buckets", "config", "errors", "files"),
    "workdirs": (
        "attention", "buckets", "config", "data", "errors", "files", "interrupts", "models",
        "parallel",
    ),
    "reporting": ("attention", "config", "workdirs"),
    "evaluation": (
        "attention", "buckets", "config", "data", "errors", "files", "models", "parallel",
        "reporting", "workdirs",
    ),
    "training": (
        "attention", "buckets", "config", "data", "errors", "evaluation", "files", "models",
        "parallel", "workdirs",
    ),
    "importing": (
        "attention", "buckets", "config", "data", "errors", "files", "models", "parallel",
        "workdirs",
    ),
    "sweeps": (
        "attention", "config", "data", "errors", "evaluation", "files", "models", "reporting",
        "training", "workdirs",
    ),
    "integrations": (
        "buckets", "cli", "config", "data", "errors", "importing", "models", "parallel", "workdirs",
    ),
    "cli": ("attention", "buckets", "config", "errors", "interrupts", "parallel", "workdirs"),
}  # fmt: skip
COMMANDS = (
    "__init__", "__main__", "train", "evaluate", "generate", "methods", "import_checkpoint",
    "export_checkpoint", "compare", "documents",
)  # fmt: skip


def imported(path, *, lazily=False):
    """The modules that a file imports, at its top or (lazily) anywhere."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazily else tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def room(path):
    return path.relative_to(REPOSITORY / "lenext").with_suffix("").parts[0]


FILES = sorted((REPOSITORY / "lenext").rglob("*.py"))


def test_every_room_is_known():
    assert {room(path) for path in FILES} == {*ROOMS, *COMMANDS}


@pytest.mark.parametrize("name", ROOMS)
def test_rooms_import_only_those_below_them(name):
    for path in FILES:
        if room(path) == name:
            # What is imported inside a function is there on demand; models alone use that.
            found = {
                module.split(".")[1]
                for module in imported(path, lazily=name != "models")
                if module.startswith("lenext.")
            }
            assert found <= {name, *ROOMS[name]}, path


def test_attention_imports_nothing_of_ours():
    assert ROOMS["attention"] == ()


def test_nothing_in_lenext_imports_experiments_or_configs():
    for path in FILES:
        for module in imported(path, lazily=True):
            assert module.split(".")[0] not in ("experiments", "configs", "tests"), path


def test_no_implementation_knows_a_choice_on_an_axis():
    """What compute has to know of an axis the axis says of itself."""
    for path in (REPOSITORY / "lenext" / "attention" / "compute").glob("*.py"):
        for module in imported(path, lazily=True):
            if module.startswith("lenext.attention.axes."):
                # What choices are, sum up by and follow; none of these is one.
                assert module.split(".")[3] in ("axis", "method", "by_key", "gates"), (path, module)


HEAVY = ("tensorflow_datasets", "orbax", "grain", "matplotlib", "optax")


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("lenext", ("jax", *HEAVY)),
        ("lenext.attention", HEAVY),
        ("lenext.models", ("tensorflow_datasets", "orbax", "grain", "matplotlib")),
        ("lenext.training", ("torch", "transformers")),
    ],
)
def test_what_an_import_brings_along(module, without):
    program = f"import sys, {module}; print([m for m in {without!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"


def test_the_public_face():
    program = (
        "from lenext import __version__, attend, load_pretrained, make_method, register\n"
        "from lenext.models import load_pretrained as same\n"
        "import lenext\n"
        "assert same is load_pretrained and lenext.attend is attend and __version__\n"
        "try:\n    lenext.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "module 'lenext' has no attribute 'nothing'\n"
