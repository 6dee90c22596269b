"""A method made as the README says is held to the guarantees, with no edit to any test."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Imported once the tests are about to be collected: not before annotations are checked.
PLUGIN = """
def pytest_collection(session):
    import recipe
"""
# Beside the README's method one that is none: softmax under another name.
SHAM = """
register("idle_length", Entry("nowhere", temperature=PowerLength(exponent=0.0)))
"""


def test_the_suite_takes_the_readmes_method(tmp_path):
    """Its guarantees run and pass, what needs a reference skips and says so, and a sham fails."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (code,) = [block for block in blocks if "register(" in block]
    (tmp_path / "recipe.py").write_text(code + SHAM)
    (tmp_path / "recipe_plugin.py").write_text(PLUGIN)
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "recipe_plugin", "-p", "no:cacheprovider",
            "-q", "-rA", "--tb=line", "tests/attention",
            "-k", "power_length or (idle_length and differs) or test_names or test_what_follows",
        ],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    results = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (.*)$", done.stdout, flags=re.MULTILINE)

    def tests(outcome):
        return [test for result, test in results if result == outcome]

    said = done.stdout + done.stderr
    guarantees = [x for x in tests("PASSED") if re.search(r"test_guarantees.*power_length", x)]
    assert len(guarantees) >= 9, said
    assert not tests("ERROR"), said
    assert tests("FAILED"), said
    assert all("idle_length" in test for test in tests("FAILED")), said
    assert tests("SKIPPED"), said
    assert all("'power_length' has no reference: add it" in test for test in tests("SKIPPED")), said
