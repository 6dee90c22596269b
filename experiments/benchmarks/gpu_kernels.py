"""Our kernels for GPUs, compiled for an H100 where there is none: registers, spills, HGMMA.

    .venv/bin/python -m pip install --no-deps --target=cuda jax-cuda13-plugin==0.10.2 \
        jax-cuda13-pjrt==0.10.2 nvidia-cuda-nvcc==13.5.37 nvidia-nvvm==13.5.37
    PYTHONPATH=cuda python -m experiments.benchmarks.gpu_kernels

In a folder apart: with that plugin in the environment, JAX would look for a GPU wherever it starts.
Beside ours stands the attention that JAX has in Pallas. Writes gpu_kernels.json, .md and .png.
"""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import measure
from experiments.benchmarks.kernels import (
    HEAD_DIM,
    HEADS,
    OWN,
    QKV,
    TOKENS,
    TRAIN_LENGTH,
    call_of,
    sides_of,
    with_gradients,
)
from lenext import cli
from lenext.attention.compute import kernel_sums
from lenext.attention.compute.kernels import attend_by_kernels
from lenext.attention.compute.triton import TritonKernel
from lenext.errors import TrainingError, UserError

PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm")
TITLE = "Our attention kernels for GPUs: compiled, never run"
PEER = "JAX's, in Pallas"
METHOD = (
    "Compiled ahead of time for an H100 (sm_90a) that is not there, and never run: no times. "
    "Registers, of 255, and spilled bytes are a thread's, as ptxas reports them. HGMMA and HMMA: "
    "products of tensor cores, of a warp group or a warp, that stand in a kernel's program."
)
# An H100's, as NVIDIA and XLA's own files of targets have them; the compiler asks a device for it.
DEVICE = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49_152,
    "shared_memory_per_core": 233_472, "threads_per_core_limit": 2048, "core_count": 132,
    "fpus_per_core": 128, "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535, "memory_bandwidth": 3_352_320_000_000, "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98, "device_memory_size": 84_929_347_584,
    "shared_memory_per_block_optin": 232_448, "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
}  # fmt: skip
TARGET = (
    f"gpu_device_info {{ {' '.join(f'{key}: {value}' for key, value in DEVICE.items())} "
    'cuda_compute_capability { major: 9 } } platform_name: "CUDA" '
    "dnn_version_info { major: 9 minor: 7 } runtime_version { major: 13 }"
)
USED = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def compile_one(name: str) -> None:
    """What the process of one method, or of `PEER`, does: compiles it with its gradients."""
    from jax.experimental import topologies

    given: Any
    if name == PEER:
        attended, given = _peer(), QKV
    else:
        call = call_of(name)
        given = sides_of(call)

        def attended(q_sides: Any, k_sides: Any, v: Any, n: Any) -> Any:
            return attend_by_kernels(q_sides, k_sides, v, call, n, TritonKernel)

    (device,) = topologies.get_topology_desc(
        platform="cuda", topology_name="H100", target_config=TARGET, topology="1x1x1"
    ).devices
    sharding = jax.sharding.SingleDeviceSharding(device)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), given)
    traced = jax.jit(with_gradients(attended)).trace(*given)
    traced.lower(lowering_platforms=("cuda",)).compile()


def _peer() -> Callable[..., Any]:
    from jax.experimental.pallas.ops.gpu import attention

    def attended(q: Any, k: Any, v: Any) -> Any:
        return attention.mha(q, k, v, segment_ids=None, sm_scale=1.0, causal=True)

    return attended


def read(report: str, program: str) -> list[measure.Record]:
    """A record a kernel, of what ptxas reported and the program that it was given."""
    bodies = {body.split("(", 1)[0]: body for body in program.split(".entry ")[1:]}
    return [
        {
            "kernel": name,
            "registers": int(registers),
            "spilled": int(stores) + int(loads),
            "hgmma": bodies[name].count("wgmma.mma_async"),
            "hmma": bodies[name].count("mma.sync"),
        }
        for name, stores, loads, registers in USED.findall(report)
    ]


def measured(name: str) -> list[measure.Record]:
    """A record a kernel of a method."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
            "XLA_FLAGS": f"--xla_dump_to={folder}",
        }  # fmt: skip
        words = [sys.executable, "-m", "experiments.benchmarks.gpu_kernels", "--one", name]
        start = time.perf_counter()
        done = subprocess.run(
            words, env=os.environ | settings, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise TrainingError(f"{name}: {done.stderr[-500:]}")
        found = []
        for path in sorted(Path(folder).glob("*.ptx")):
            program = path.read_text()
            if ".entry" in program:
                words = [_ptxas(), "-v", "--gpu-name=sm_90a", path, "-o", os.devnull]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                found += read(done.stderr, program)
    ours = [record for record in found if re.match("lenext|mha", record["kernel"])]
    return [{"name": name, "seconds": seconds} | record for record in ours]


def _ptxas() -> str:
    """The assembler of the wheel nvidia-cuda-nvcc."""
    for file in importlib.metadata.files("nvidia-cuda-nvcc") or ():
        if file.name == "ptxas":
            return str(file.locate())
    raise UserError("ptxas: should be in nvidia-cuda-nvcc's wheel")


def lines_of(records: list[measure.Record]) -> list[str]:
    """The table."""
    rows = [
        [
            record["name"] if record["name"] == PEER else f"`{record['name']}`",
            f"`{record['kernel']}`",
            *(str(record[key]) for key in ("registers", "spilled", "hgmma", "hmma")),
        ]
        for record in records
    ]
    headings = ["method", "kernel", "registers", "bytes spilled", "HGMMA", "HMMA"]
    return [METHOD, "", *measure.table(headings, rows)]


def run(results: Path, *, quick: bool) -> None:
    """Compiles everything, and writes what was counted.

    Raises:
      UserError: what compiles for GPUs is not installed.
    """
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise UserError(f"{PACKAGES[0]} not installed, which compiles for GPUs: see --help")
    names, records = (PEER, *OWN)[: 2 if quick else None], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, found in zip(names, pool.map(measured, names), strict=True):
            records += found
            print(name, flush=True)
    shape = {
        "batch": 1, "tokens": TOKENS, "heads": HEADS, "head_dim": HEAD_DIM, "dtype": "bfloat16",
        "causal": True, "train_length": TRAIN_LENGTH,
    }  # fmt: skip
    about = measure.describe(shape, [], seeds=[], tokens=TOKENS, steps=0)
    about["versions"] |= {name: importlib.metadata.version(name) for name in PACKAGES}
    bars = {
        kernel: {r["name"]: float(r["registers"]) for r in records if r["kernel"] == kernel}
        for kernel in (kernel_sums.OUTPUTS, kernel_sums.OF_QUERIES, kernel_sums.OF_KEYS)
    }
    picture = measure.draw_bars(bars, "registers a thread, of 255", TITLE)
    measure.write(results, "gpu_kernels", TITLE, lines_of(records), about, records, picture)


def main() -> None:
    """Parses the flags, runs."""
    parser = measure.parser(__doc__, runs=1)
    parser.add_argument("--one", metavar="NAME", help="compiles one")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if arguments.one:
        compile_one(arguments.one)
        return
    run(arguments.results, quick=arguments.quick)


if __name__ == "__main__":
    cli.guard(__doc__ or "", main, interrupted="interrupted; nothing was written")
