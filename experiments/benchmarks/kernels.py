"""Kernels for TPUs, compiled where there is none: an estimate of their cycles, from the schedule.

    .venv/bin/python -m pip install libtpu==0.0.42.1
    python -m experiments.benchmarks.kernels

Our own kernels, splash attention in blocks of two sizes, of which `attend` takes the larger, and
XLA's tiles, each forward and, but for the tiles, backward, for v5e, v5p and v6e. Writes
kernels.json, .md and .png.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh

from experiments.benchmarks import measure
from experiments.benchmarks.collectives import computations, loops
from lenext import cli
from lenext.attention import Method, attend, make_method
from lenext.attention.axes.by_key import TwoStage
from lenext.attention.compute import fused, kernel_sums, naive, tiles
from lenext.attention.compute.call import Call
from lenext.attention.compute.kernel_steps import steps_of
from lenext.attention.compute.kernels import attend_by_kernels
from lenext.attention.compute.places import Places, located, rows_at
from lenext.attention.compute.plan import plan_of, visible_keys
from lenext.attention.compute.tpu import TpuKernel
from lenext.errors import TrainingError, UserError

INSTALL = ".venv/bin/python -m pip install libtpu==0.0.42.1"
CHIPS = {
    "v5e": ("v5litepod-4", "v5e:2x2"),
    "v5p": ("v5p-8", "v5p:2x2x1"),
    "v6e": ("v6e-4", "v6e:2x2"),
}
"""By name: the accelerator type and the topology, as libtpu has them."""
TOKENS, HEADS, HEAD_DIM, TRAIN_LENGTH = 16_384, 8, 128, 4096
OWN = ("softmax", "lssa", "sigmoid", "rerope", "lm_infinite", "self_extend", "dual_chunk",
       "lssar")  # fmt: skip
SPLASH = {"splash, blocks of 512": (512, 512), "splash, blocks of 1024": (1024, 512)}
TILES = ("softmax", "lssa", "rerope", "lssar")
TITLE = "Attention kernels for TPUs: estimated cycles"
METHOD = (
    "Estimate: compiled ahead of time for a TPU that is not there. A bundle is what a core does in "
    "one cycle: those of each basic block in the final schedule of a kernel are counted, times how "
    "often the block is run, which is once a tile for a body, once a block of queries (or of keys) "
    "for what begins or ends its sum, once a step for the rest. Waiting for memory is not seen, "
    "nor what lies around a kernel; of XLA's tiles it is XLA's own estimate of its operations, "
    "times the tiles."
)


class Visits(NamedTuple):
    """How often a kernel runs what it has, for one head.

    Attributes:
      bodies: its bodies, in the order of the program.
      sums: what begins one, and what ends it.
    """

    bodies: list[int]
    sums: int


class Counted(NamedTuple):
    """Of a kernel: what `blocks_of` found, taken times what `Visits` say.

    Attributes:
      cycles: estimated, of all heads.
      bodies: bundles of each body.
    """

    cycles: int
    bodies: list[int]


BUNDLE = re.compile(r"^ *(0x[0-9a-f]+|0) +((?:LH|LB|LE|PB|PF|CT)\b)?.*?: ")
GRID = re.compile(r"iteration_bounds: \(([\d, ]+)\)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
DELAY_SLOTS = 4  # bundles after a branch that are run whether it is taken or not


def blocks_of(schedule: str) -> list[int]:
    """Bundles of each basic block of a final schedule, in the order of the program.

    A block begins where something may jump to, and after a branch.
    """
    starts, last = {0}, -1
    for line in schedule.splitlines():
        match = BUNDLE.match(line)
        if match is None:
            continue
        last = int(match[1], 16)
        if match[2]:
            starts.add(last)
        if "sbr.rel" in line:
            starts.add(last + DELAY_SLOTS + 1)
    edges = [*sorted(start for start in starts if start <= last), last + 1]
    return [end - start for start, end in itertools.pairwise(edges)]


def counted(schedule: str, visits: Visits) -> Counted:
    """A kernel's cycles.

    Its largest blocks are the bodies, in the order of their visits; the largest before them begins
    a sum, the largest after them ends one. The first block of all is run once, others each step.
    """
    blocks = blocks_of(schedule)
    grid = GRID.search(schedule)
    if grid is None or len(blocks) < len(visits.bodies):
        raise ValueError("the schedule should be one of a kernel with a grid")
    steps = math.prod(int(n) for n in grid[1].split(","))
    bodies = sorted(sorted(range(len(blocks)), key=lambda i: -blocks[i])[: len(visits.bodies)])
    before, after = range(1, bodies[0]), range(bodies[-1] + 1, len(blocks))
    ends = [max(some, key=lambda i: blocks[i]) for some in (before, after) if some]
    rest = sum(blocks[i] for i in (*before, *after) if i not in ends)
    a_head = sum(blocks[i] * n for i, n in zip(bodies, visits.bodies, strict=True))
    a_head += visits.sums * sum(blocks[i] for i in ends)
    return Counted(a_head * HEADS + rest * steps, [blocks[i] for i in bodies])


def in_tiles(text: str, visited: int, blocks: int) -> int:
    """Cycles of XLA's tiles, by its estimates in a compiled program's text.

    Of the loops over tiles, one masked and one not, the larger counts for all that are visited.
    """
    lines, entry = computations(text)
    own = {name: sum(map(int, CYCLES.findall("\n".join(some)))) for name, some in lines.items()}
    outer = {name: [body for _, body in loops(some)] for name, some in lines.items()}
    cycles = own[entry]
    for block in outer[entry]:
        inner = max((own[body] for body in outer[block]), default=0)
        cycles += own[block] * blocks + inner * visited
    return cycles


class Job(NamedTuple):
    """A program to compile: in a process of its own, which reads its settings when it starts.

    Attributes:
      kind: "own", "splash" or "tiles".
      name: the method, or the key of `SPLASH`.
    """

    kind: str
    name: str


def program(job: Job, sharding: Any) -> tuple[Any, dict[str, Visits]]:
    """A function to be compiled, lowered for a TPU; and what its kernels visit, by their names."""
    if job.kind == "splash":
        function, given, visits = _splash(*SPLASH[job.name])
    else:
        function, given, visits = (_own if job.kind == "own" else _tiles)(call_of(job.name))
    if job.kind != "tiles":
        function = with_gradients(function)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), given)
    return jax.jit(function).trace(*given).lower(lowering_platforms=("tpu",)), visits


Program = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Visits]]
"""A function, the shapes that it takes, and what its kernels visit."""
QKV = (jax.ShapeDtypeStruct((1, TOKENS, HEADS, HEAD_DIM), jnp.bfloat16),) * 3


def with_gradients(attended: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of its first three arguments."""

    def summed(*given: Any) -> Any:
        return jnp.sum(attended(*given).astype(jnp.float32))

    return jax.grad(summed, (0, 1, 2))


def sides_of(call: Call) -> tuple[Any, ...]:
    """Shapes of what `attend_by_kernels` takes: with the sides made, nothing else is compiled."""

    def sides(q: Any, k: Any, v: Any) -> Any:
        positions = jnp.arange(TOKENS, dtype=jnp.int32)[None]
        places = located(Places(positions, positions))
        n = visible_keys(plan_of(call, fused.TILE), places)
        rows = rows_at(
            call.method, places, n, causal=True, length=TOKENS, num_heads=HEADS, head_dim=HEAD_DIM
        )
        q_sides = naive.query_sides(q, call.method, {}, rows)
        k_sides = naive.key_sides(k, call.method, rows)
        return list(q_sides), list(k_sides), v.swapaxes(1, 2), n

    return jax.eval_shape(sides, *QKV)


def call_of(name: str) -> Call:
    """Attention by a method of that name, of the shapes that are compiled for."""
    method = make_method(name, train_length=TRAIN_LENGTH)
    assert isinstance(method, Method)  # none of these is of shares of the heads
    shape = QKV[0].shape
    return Call(method, shape, shape, shape, "bfloat16", True, True, False, TOKENS)


def _own(call: Call) -> Program:
    def attended(q_sides: Any, k_sides: Any, v: Any, n: Any) -> Any:
        return attend_by_kernels(q_sides, k_sides, v, call, n, TpuKernel)

    forward, backward = TpuKernel.plans(call)
    kernels = [
        (kernel_sums.OUTPUTS, forward, False),
        (kernel_sums.OF_QUERIES, backward, False),
        (kernel_sums.OF_KEYS, backward, True),
    ]
    if isinstance(call.method.weighting, TwoStage):
        kernels.append((kernel_sums.TOTALS, forward, False))
    visits = {}
    for name, plan, by_tile in kernels:
        steps = steps_of(plan, by_tile=by_tile)
        of_kind = Counter(int(number) >> 2 for number in steps.what)
        sums = plan.key_blocks if by_tile else plan.query_blocks
        visits[name] = Visits([of_kind[i] for i in range(len(steps.kinds))], sums)
    return attended, sides_of(call), visits


def _splash(size: int, compute: int) -> Program:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    sizes = dict.fromkeys(
        ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), size
    )
    sizes |= dict.fromkeys(("block_kv_compute", "block_kv_dkv_compute"), compute)
    mask = splash.MultiHeadMask([splash.CausalMask((TOKENS, TOKENS))] * HEADS)
    kernel: Any = splash.make_splash_mha_single_device(mask, block_sizes=splash.BlockSizes(**sizes))

    def attended(q: Any, k: Any, v: Any) -> Any:
        return jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (q, k, v)))

    blocks = TOKENS // size
    visits = Visits([blocks * (blocks + 1) // 2], blocks)
    return (
        attended,
        QKV,
        dict.fromkeys(("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"), visits),
    )


def _tiles(call: Call) -> Program:
    size = tiles.default_tile(1, HEADS, None)
    blocks = TOKENS // size

    def attended(q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v, call.method, causal=True, implementation="blockwise")

    return attended, QKV, {"tiles": Visits([blocks * (blocks + 1) // 2], blocks)}


def compile_one(job: Job, chip: str) -> None:
    """What the process of one job does: compiles it, and prints what its kernels visit as JSON."""
    from jax.experimental import topologies

    device = topologies.get_topology_desc(CHIPS[chip][1], platform="tpu").devices[0]
    kind = AbstractDevice(device.device_kind, device.num_cores, "tpu")
    # Some operations are lowered by what the device has, which is asked of the mesh.
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=kind)):
        lowered, visits = program(job, jax.sharding.SingleDeviceSharding(device))
    start = time.perf_counter()
    text = lowered.compile().as_text()
    found: dict[str, Any] = {
        "custom_calls": text.count('custom_call_target="tpu_custom_call"'),
        "seconds": time.perf_counter() - start,
        "visits": visits,
    }
    if job.kind == "tiles":
        (visited,) = visits["tiles"].bodies
        found["cycles"] = in_tiles(text, visited, visits["tiles"].sums)
    print(json.dumps(found))


def measured(job: Job, chip: str) -> list[measure.Record]:
    """A record a pass: cycles, bundles of each body, custom calls, seconds of compiling."""
    with tempfile.TemporaryDirectory() as folder:
        dumps = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        settings = {
            "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": CHIPS[chip][0], "LIBTPU_INIT_ARGS": dumps,
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else one process at a time, for a chip's sake
        }  # fmt: skip
        words = [sys.executable, "-m", "experiments.benchmarks.kernels", "--one", chip, *job]
        done = subprocess.run(
            words, env=os.environ | settings, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise TrainingError(f"{job.kind} {job.name} for {chip}: {done.stderr[-500:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        about = {"chip": chip, "kind": job.kind, "name": job.name}
        about |= {key: found[key] for key in ("custom_calls", "seconds")}
        if job.kind == "tiles":
            return [about | {"pass": "forward", "cycles": found["cycles"], "bodies": []}]
        passes: dict[str, Counted] = {}
        for name, visits in found["visits"].items():
            (path,) = Path(folder).glob(f"*{name}*[0-9]-final_bundles.txt")
            kernel = counted(path.read_text(), Visits(*visits))
            forward = name in (kernel_sums.TOTALS, kernel_sums.OUTPUTS, "splash_mha_fwd")
            turn = "forward" if forward else "backward"
            before = passes.get(turn, Counted(0, []))
            passes[turn] = Counted(before.cycles + kernel.cycles, [*before.bodies, *kernel.bodies])
    return [about | {"pass": turn} | kernel._asdict() for turn, kernel in passes.items()]


def lines_of(records: list[measure.Record]) -> list[str]:
    """The tables: cycles of each pass by chip, over those of the best splash."""
    chips = list(dict.fromkeys(record["chip"] for record in records))
    found = {(r["kind"], r["name"], r["pass"], r["chip"]): r for r in records}
    names = list(dict.fromkeys(key[:2] for key in found))
    lines = [METHOD, ""]
    for turn in ("forward", "backward"):
        best = {
            chip: min(
                r["cycles"] for k, r in found.items() if k[0] == "splash" and k[2:] == (turn, chip)
            )
            for chip in chips
        }
        rows = []
        for kind, name in names:
            cells = [found.get((kind, name, turn, chip)) for chip in chips]
            if any(cells):
                shown = {"own": f"`{name}`", "tiles": f"`{name}`, XLA's tiles"}.get(kind, name)
                rows.append([shown, *(_cell(x, best) for x in cells)])
        lines += [
            f"## {turn.capitalize()}: Mcycles, and times the best splash's",
            "",
            *measure.table(["kernel", *chips], rows),
            "",
        ]
    return lines


def _cell(record: measure.Record | None, best: dict[str, int]) -> str:
    if record is None:
        return measure.number(None)
    cycles = record["cycles"]
    return f"{measure.number(cycles / 1e6)} ({cycles / best[record['chip']]:.2f})"


def jobs(quick: bool) -> list[Job]:
    """All programs; of each kind the first where it is to be quick."""
    found = {"splash": tuple(SPLASH), "own": OWN, "tiles": TILES}
    return [
        Job(kind, name) for kind, some in found.items() for name in some[: 1 if quick else None]
    ]


def run(results: Path, *, quick: bool) -> None:
    """Compiles everything for every chip, and writes what was counted.

    Raises:
      UserError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"libtpu not installed, which compiles for TPUs: {INSTALL}")
    chips = list(CHIPS)[: 1 if quick else None]
    programs = [(job, chip) for chip in chips for job in jobs(quick)]
    records = []
    # What is counted does not follow what else is compiled at the time.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = pool.map(lambda program: measured(*program), programs)
        for (job, chip), found in zip(programs, counts, strict=True):
            records += found
            print(chip, *job, flush=True)
    shape = {
        "batch": 1, "tokens": TOKENS, "heads": HEADS, "head_dim": HEAD_DIM, "dtype": "bfloat16",
        "causal": True, "train_length": TRAIN_LENGTH,
    }  # fmt: skip
    about = measure.describe(shape, [], seeds=[], tokens=TOKENS, steps=0)
    about["versions"]["libtpu"] = importlib.metadata.version("libtpu")
    write(results, about, records)


def write(results: Path, about: dict[str, Any], records: list[measure.Record]) -> None:
    """Writes the tables and the picture of what was counted."""
    shape = about["config"]
    lines = [
        f"- libtpu {about['versions']['libtpu']}; {shape['tokens']:,} tokens, "
        f"{shape['heads']} heads of {shape['head_dim']}, {shape['dtype']}, causal, "
        f"L = {shape['train_length']}",
        "",
        *lines_of(records),
    ]
    bars = {
        f"{chip}, forward": {
            r["name"]: r["cycles"] / 1e6
            for r in records
            if r["chip"] == chip and r["pass"] == "forward" and r["kind"] != "tiles"
        }
        for chip in dict.fromkeys(r["chip"] for r in records)
    }
    picture = measure.draw_bars(bars, "Mcycles, an estimate", TITLE)
    measure.write(results, "kernels", TITLE, lines, about, records, picture)


def main() -> None:
    """Parses the flags, runs."""
    parser = measure.parser(__doc__, runs=1)
    parser.add_argument("--one", nargs=3, metavar=("CHIP", "KIND", "NAME"), help="compiles one")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # beside libtpu, JAX would look for a TPU for minutes
    if arguments.one:
        chip, *job = arguments.one
        compile_one(Job(*job), chip)
        return
    run(arguments.results, quick=arguments.quick)


if __name__ == "__main__":
    cli.guard(__doc__ or "", main, interrupted="interrupted; nothing was written")
