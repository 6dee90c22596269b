"""Where a result comes from: code, versions, machine."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from lenext.workdirs.versions import results_version

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def provenance() -> dict[str, Any]:
    """Git revision, versions and hardware, as JSON values; and which version of results it is."""
    return {
        "git": git_revision(),
        "results_version": results_version(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "hardware": {
            "backend": jax.default_backend(),
            "devices": jax.device_count(),
            "device_kind": jax.devices()[0].device_kind,
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def joined(values: Sequence[Any]) -> Any:
    """The one JSON value that these are, or a list of those that differ, in their order.

    What was joined before counts for what it was joined of.
    """
    each = [x for value in values for x in (value if isinstance(value, list) else [value])]
    different = list({json.dumps(x, sort_keys=True): x for x in each}.values())
    return different[0] if len(different) == 1 else different


def git_revision() -> str | None:
    """The commit this code is at, with "+changes" where files differ from it; None without git."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
