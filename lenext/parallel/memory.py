"""Memory of a device: what is free there, what a program wants, and in what pages it comes."""

import math
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from lenext.errors import UserError

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MALLOC, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


class Needs(NamedTuple):
    """What a compiled program wants, in bytes, on each device.

    Attributes:
      arguments: of what it is given.
      beside: of outputs that take no argument's place, and of everything between.
    """

    arguments: int
    beside: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.arguments + self.beside


def needs_of(compiled: Any) -> Needs:
    """What a program wants, as its compiler has planned it."""
    plan = compiled.memory_analysis()
    beside = plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes
    return Needs(int(plan.argument_size_in_bytes), int(beside))


def bytes_of(tree: Any) -> int:
    """Of a tree of arrays, or of their shapes, on each device that they lie on."""

    def on_one(x: Any) -> int:
        sharding = getattr(x, "sharding", None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(on_one(x) for x in jax.tree.leaves(tree))


def free_bytes(mesh: Mesh | None = None) -> int | None:
    """Bytes free on a device of this process, of the mesh or alone; None where that is not known.

    Devices of the mesh that are one CPU share what its operating system, and the container it may
    run in, have left. (Several processes on one machine do not know of each other.)
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform != "cpu":
        return None
    left = [n for n in (_free_of_system(), _free_of_container()) if n is not None]
    shares = 1 if mesh is None else len(mesh.local_devices)
    return min(left) // shares if left else None


def advice_on_pages() -> str:
    """What would have this CPU hand out memory in huge pages; "" where it does, or cannot.

    XLA's CPU client takes a program's temporary memory from malloc at each call and gives it back
    after it, so that the system hands out every page anew: of 4 kB, those of a training step took a
    third of its time and more (experiments/benchmarks/training_step.py).
    """
    given = os.getenv(MALLOC, "")
    if jax.default_backend() != "cpu" or TUNABLE in given:
        return ""
    library, version = platform.libc_ver()
    try:
        asked_for = "[madvise]" in HUGE_PAGES.read_text()
        known = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    except (OSError, ValueError):
        return ""
    tunables = ":".join(filter(None, (given, f"{TUNABLE}=1")))
    return f"export {MALLOC}={tunables}" if asked_for and known else ""


def check_fits(needed: int, what: str, advice: str, mesh: Mesh | None = None) -> None:
    """Checks that a device has so many bytes free.

    Args:
      needed: bytes.
      what: wants them; says how many.
      advice: what would take less.
      mesh: over which it is spread; None for one device.

    Raises:
      UserError: it has not.
    """
    free = free_bytes(mesh)
    if free is not None and needed > free:
        raise UserError(f"{what}, and {said(free)} are free: {advice}")


def said(size: int | None) -> str:
    """Such as "13.1 MB"; "an unknown amount" of None."""
    if size is None:
        return "an unknown amount"
    unit, name = (1e3, "kB") if size < 1e6 else (1e6, "MB") if size < 1e9 else (1e9, "GB")
    return f"{size / unit:,.1f} {name}"


def _free_of_system() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:  # no Linux
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None


def _free_of_container() -> int | None:
    try:
        limit, used = ((CGROUP / f"memory.{x}").read_text().strip() for x in ("max", "current"))
        cached = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:  # none, or of another kind
        return None
    if not limit.isdecimal():  # "max"
        return None
    # What the kernel holds of files makes way.
    files = sum(
        int(x.split()[1]) for x in cached if x.startswith(("inactive_file ", "active_file "))
    )
    return max(0, int(limit) - int(used) + files)
