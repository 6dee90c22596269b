"""What `make check` runs, and the budgets of folders: both name what there is."""

import re

from tests.training.common import REPOSITORY

TESTS = REPOSITORY / "tests"


def folder_of(path):
    """The folder of tests/ that a file is in; "" for a file of tests/ itself."""
    parts = path.relative_to(TESTS).parts
    return parts[0] if len(parts) > 1 or path.is_dir() else ""


def folders():
    return {folder_of(path) for path in TESTS.rglob("test_*.py")}


def test_make_check_looks_into_every_folder():
    lines = (TESTS / "fast.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    named = [REPOSITORY / line.split("::")[0] for line in lines]
    assert all(path.exists() for path in named)
    assert {folder_of(path) for path in named} == folders()


def test_budgets_are_of_folders_and_fit_into_the_time_of_all():
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+) \|$", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.M
    )
    (rest,) = re.findall(
        r"^\| all others \| (\d+) \|$", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.M
    )
    assert {name for name, _ in rows} < folders()
    assert sum(int(seconds) for _, seconds in rows) + int(rest) <= 2 * 15 * 60
