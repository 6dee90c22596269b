"""JAX's cache of compiled programs, which a folder in the environment turns on."""

import os
import shutil
import subprocess
import sys

from tests.training.common import REPOSITORY, snapshot


def test_what_was_compiled_once_is_not_compiled_again(trained, tmp_path):
    """Another run's evaluation of the same shapes adds no program to those that are there."""
    compiled = tmp_path / "compiled"
    environment = dict(os.environ) | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    found = []
    for name in ("first", "second"):
        workdir = tmp_path / name
        shutil.copytree(trained(), workdir)
        done = subprocess.run(
            [sys.executable, "-m", "lenext.evaluate", f"--workdir={workdir}"],
            cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (workdir / "eval" / "results.csv").exists()
        found.append({name for name in snapshot(compiled) if name.endswith("-cache")})
    assert len(found[0]) > 2
    assert found[0] == found[1]
