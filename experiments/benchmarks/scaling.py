"""How a training step scales over devices: what they send each other, and what that may cost.

    python -m experiments.benchmarks.scaling

On paper: the step is compiled ahead of time for TPU slices of up to 4096 chips, by libtpu, which
needs no TPU (`pip install libtpu==0.0.42.1`, with jax 0.10.2; left out where it is not there).
Memory and exchanges are read off the compiled program; time is what they and the FLOPs would take
at published rates, and no more than that. In simulation: a small step on 1, 2, 4 and 8 virtual
devices of this machine, which share its cores; and long attention whose keys are gathered, beside
the same passed round a ring. Writes scaling.md, .json and .png under --results.
"""

import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import decoder
from experiments.benchmarks import measure
from experiments.benchmarks.collectives import collectives
from experiments.benchmarks.measure import Record, number, table
from lenext.attention import attend, make_method
from lenext.config import Config, plain, read_methods
from lenext.models import build_model, kinds_of
from lenext.parallel.meshes import (
    MESH_AXES,
    ROWS,
    make_mesh,
    place,
    shard_batch,
    shardings_of,
    splits_of,
)
from lenext.training.optimizer import make_optimizer, make_schedule
from lenext.training.step import make_train_step

TITLE = "A training step over several devices"
CHILD = "--child"
INSTALL_LIBTPU = "pip install --no-deps libtpu==0.0.42.1"
GB = 1e9


class Rates(NamedTuple):
    """What a vendor publishes of a chip.

    Attributes:
      flops: bfloat16 FLOP/s, dense.
      memory: bytes.
      links: bytes/s that all its links send together.
      axis: bytes/s of those that serve one axis of the torus; of an H100, of its network card,
        which is all there is between nodes of 8.
    """

    flops: float
    memory: float
    links: float
    axis: float


# cloud.google.com/tpu/docs/v5e and v5p (interchip interconnect of 1600 and 4800 Gbit/s a chip, over
# 4 and 6 links); nvidia.com/en-us/data-center/h100 (SXM; NVLink 900 GB/s both ways), and a card of
# 400 Gbit/s for each.
RATES = {
    "v5e": Rates(197e12, 16 * GB, 200 * GB, 100 * GB),
    "v5p": Rates(459e12, 95 * GB, 600 * GB, 200 * GB),
    "H100": Rates(989e12, 80 * GB, 450 * GB, 50 * GB),
}
SLICES = {"v5e:4x4": 16, "v5e:16x16": 256, "v5p:8x8x16": 1024, "v5p:16x16x16": 4096}
LAYOUTS: dict[str, Mapping[str, int]] = {
    "data": {},
    "fsdp": {"data": 1, "fsdp": 0},
    "data x 256 fsdp": {"fsdp": 256},
    "data x 64 fsdp x 4 tensor": {"fsdp": 64, "tensor": 4},
    "data x 64 fsdp x 4 sequence": {"fsdp": 64, "sequence": 4},
}
ROWS_A_DEVICE = 4
SIMULATED = (1, 2, 4, 8)
RING_LENGTH = 4096


def gpt2_small() -> Config:
    """The softplus paper's model at its length, 124 million parameters."""
    return decoder.get_config("gpt2_small")


def one_billion() -> Config:
    """22 layers of 2048, 1.2 billion parameters, at 2048 tokens."""
    config = gpt2_small()
    config.model.update(
        hidden_size=2048, intermediate_size=5632, key_size=64, num_heads=32, num_layers=22,
        mlp="gated", remat=True,
    )  # fmt: skip
    config.data.train_length = 2048
    return config


def tiny() -> Config:
    """What this machine trains in simulation."""
    config = decoder.get_config("tiny")
    config.model.update(hidden_size=128, intermediate_size=256, key_size=32, num_heads=8,
                        num_layers=2, vocab_size=512)  # fmt: skip
    config.data.update(train_length=128, batch_size=8)
    return config


MODELS: dict[str, Callable[[], Config]] = {"GPT-2 small": gpt2_small, "1 billion": one_billion}
COMPILED = (
    ("GPT-2 small", "v5e:4x4", "data"),
    ("GPT-2 small", "v5e:16x16", "data"),
    ("GPT-2 small", "v5p:16x16x16", "data"),
    ("GPT-2 small", "v5p:16x16x16", "data x 256 fsdp"),
    ("1 billion", "v5e:16x16", "fsdp"),
    ("1 billion", "v5p:8x8x16", "data x 256 fsdp"),
    ("1 billion", "v5p:16x16x16", "data x 256 fsdp"),
    ("1 billion", "v5p:16x16x16", "data x 64 fsdp x 4 tensor"),
    ("1 billion", "v5p:16x16x16", "data x 64 fsdp x 4 sequence"),
)
"""A model, a slice and a layout each; minutes of compilation each."""


class Step(NamedTuple):
    """A training step on a mesh, of shapes alone."""

    function: Any
    state: Any
    batch: Any
    parameters: int


def make_step(config: Config, mesh: Mesh, rows: int) -> Step:
    """The step that `lenext.train` would take, for `rows` rows in all."""
    length = config.data.train_length
    methods = read_methods(config.model.method, length)
    vocab_size = config.model.vocab_size
    model = nnx.eval_shape(lambda: build_model(config.model, methods, vocab_size, config.seed))
    params = nnx.to_pure_dict(nnx.state(model))
    schedule = make_schedule(config.optimizer, 100)
    optimizer = make_optimizer(config.optimizer, schedule, kinds_of(model))
    state = jax.eval_shape(lambda p: {"params": p, "optimizer": optimizer.init(p)}, params)
    shardings = shardings_of(state, mesh, splits_of(model))
    step = make_train_step(
        nnx.graphdef(model), optimizer, seed=config.seed, dropout=False, mesh=mesh,
        shardings=shardings,
    )  # fmt: skip
    split = NamedSharding(mesh, P(ROWS, "sequence"))
    batch = {
        name: jax.ShapeDtypeStruct((rows, length), kind, sharding=split)
        for name, kind in (("tokens", jnp.int32), ("targets", jnp.int32), ("weights", jnp.float32))
    }
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state, shardings,
    )  # fmt: skip
    return Step(step, state, batch, sum(math.prod(x.shape) for x in jax.tree.leaves(params)))


def step_flops(config: Config, parameters: int, tokens: int) -> float:
    """Of a step's products, forward and backward, nothing done twice (arXiv 2204.02311, app. B).

    Causal rows see half of all keys.
    """
    model = config.model
    attention = 6 * model.num_layers * model.num_heads * model.key_size * config.data.train_length
    return (6.0 * parameters + attention) * tokens


def exchanged(text: str) -> list[dict[str, Any]]:
    """A program's exchanges as JSON values."""
    return [found._asdict() | {"sent": found.sent} for found in collectives(text)]


def on_paper(model: str, chips: str, layout: str) -> Record:
    """A step compiled for a slice, in a process that has told libtpu to look for no TPU."""
    config, devices = MODELS[model](), SLICES[chips]
    shape = _sizes(LAYOUTS[layout], devices)
    topology = topologies.get_topology_desc(chips, platform="tpu")
    placed = mesh_utils.create_device_mesh(
        tuple(shape.values()), topology.devices, allow_split_physical_axes=True
    )
    mesh = Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    rows = ROWS_A_DEVICE * devices
    step = make_step(config, mesh, rows)
    program = step.function.lower(step.state, step.batch, np.int32(1)).compile()
    memory = program.memory_analysis()
    tokens = rows * config.data.train_length
    return {
        "model": model, "slice": chips, "devices": devices, "layout": layout, "mesh": shape,
        "parameters": step.parameters, "tokens": tokens,
        "flops": step_flops(config, step.parameters, tokens) / devices,
        "memory": memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        "exchanges": exchanged(program.as_text()),
    }  # fmt: skip


def in_simulation(devices: int, layout: str, runs: int) -> Record:
    """A small step on virtual devices, in a process that has so many."""
    config = tiny()
    sizes = {"data": 1, layout: devices}
    config.mesh.update(sizes)
    mesh = make_mesh(config.mesh)
    step = make_step(config, mesh, config.data.batch_size)
    program = step.function.lower(step.state, step.batch, np.int32(1)).compile()
    rng = np.random.default_rng(0)
    shape = (config.data.batch_size, config.data.train_length)
    tokens = rng.integers(256, size=shape, dtype=np.int32)
    batch = shard_batch(
        {"tokens": tokens, "targets": tokens, "weights": np.ones(shape, np.float32)}, mesh
    )
    shardings = jax.tree.map(lambda x: x.sharding, step.state)
    state = place(
        jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape).astype(x.dtype)
                     if x.ndim else np.zeros((), x.dtype), step.state["params"])
        , shardings["params"])  # fmt: skip
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), step.state["optimizer"])
    state = {"params": state, "optimizer": place(zeros, shardings["optimizer"])}
    seconds = []
    for number_of in range(1, runs + 2):

        def take(number_of: int = number_of) -> None:
            nonlocal state
            state, metrics = program(state, batch, np.int32(number_of))
            jax.block_until_ready(metrics)

        seconds.append(measure.seconds_of(take))
    return {
        "devices": devices, "layout": layout, "seconds": float(np.median(seconds[1:])),
        "times": seconds[1:], "exchanges": exchanged(program.as_text()),
    }  # fmt: skip


def ring_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention, all to all, of queries whose keys come round a ring (arXiv 2310.01889)."""
    shares = jax.lax.axis_size("sequence")
    round_the_ring = [(i, (i + 1) % shares) for i in range(shares)]
    scale = 1.0 / math.sqrt(q.shape[-1])

    def seen(rows: Any, k: jax.Array, v: jax.Array) -> Any:
        top, total, out = rows
        logits = scale * jnp.einsum("bqnh,bknh->bnqk", q, k)
        new_top = jnp.maximum(top, logits.max(axis=-1, keepdims=True))
        weights = jnp.exp(logits - new_top)
        kept = jnp.exp(top - new_top)
        total = total * kept + weights.sum(axis=-1, keepdims=True)
        return new_top, total, out * kept + jnp.einsum("bnqk,bknh->bnqh", weights, v)

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        rows, k, v = carry
        k, v = (jax.lax.ppermute(x, "sequence", round_the_ring) for x in (k, v))
        return (seen(rows, k, v), k, v), None

    batch, length, heads, size = q.shape
    zeros = jnp.zeros((batch, heads, length, 1))
    own = seen((zeros - jnp.inf, zeros, jnp.zeros((batch, heads, length, size))), k, v)
    ((_, total, out), _, _), _ = jax.lax.scan(turn, (own, k, v), length=shares - 1)
    return jnp.moveaxis(out / total, 1, 2)


def gathered_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same, as `lenext.models` does it: each device gathers all keys and values."""
    k, v = (jax.lax.all_gather(x, "sequence", axis=1, tiled=True) for x in (k, v))
    return attend(q, k, v, make_method("nope", train_length=64), causal=False)


def ring_or_gather(devices: int, length: int, runs: int) -> Record:
    """Both ways of long attention on as many virtual devices."""
    mesh = jax.make_mesh((devices,), ("sequence",), axis_types=(AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (3, 1, length, 4, 64))
    found: Record = {"devices": devices, "length": length}
    calls, outs = {}, {}
    for name, function in (("gather", gathered_attention), ("ring", ring_attention)):
        split = functools.partial(
            jax.shard_map, mesh=mesh, in_specs=P(None, "sequence"),
            out_specs=P(None, "sequence"), check_vma=False,
        )  # fmt: skip
        compiled = measure.compiled(jax.jit(split(function)), *x)
        calls[name] = compiled.bound(*x)
        outs[name] = np.asarray(compiled.call(*x))
        text = compiled.call.as_text()  # pyright: ignore[reportFunctionMemberAccess]
        found[name] = {
            "sent": sum(c.sent for c in collectives(text)), "temp_bytes": compiled.temp_bytes
        }  # fmt: skip
    np.testing.assert_allclose(outs["ring"], outs["gather"], atol=2e-5)
    for name, seconds in measure.medians(measure.interleaved(calls, runs)).items():
        found[name]["seconds"] = seconds
    return found


CHILDREN: dict[str, Callable[..., Record]] = {
    "on_paper": on_paper, "in_simulation": in_simulation, "ring_or_gather": ring_or_gather,
}  # fmt: skip


def _sizes(layout: Mapping[str, int], devices: int) -> dict[str, int]:
    """Of the axes; 0 stands for what the others leave."""
    sizes = {axis: layout.get(axis, 0 if axis == "data" else 1) for axis in MESH_AXES}
    taken = math.prod(size for size in sizes.values() if size)
    return {axis: size or devices // taken for axis, size in sizes.items()}


def in_a_process(name: str, devices: int, *arguments: Any) -> Record:
    """What a function of `CHILDREN` gives in a process of its own, of so many virtual devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    done = subprocess.run(
        [
            sys.executable, "-m", "experiments.benchmarks.scaling", CHILD,
            json.dumps([name, *arguments]),
        ],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}{arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def seconds_at(record: Record, rates: Rates, *, best: bool) -> float:
    """Of a step on paper: exchanges over all links beside the products, or one axis' and after."""
    work = record["flops"] / rates.flops
    sent = sum(found["sent"] for found in record["exchanges"])
    return max(work, sent / rates.links) if best else work + sent / rates.axis


def paper_lines(records: Sequence[Record]) -> list[str]:
    """A table of what was compiled for slices."""
    rows = []
    for r in records:
        sent = sum(found["sent"] for found in r["exchanges"])
        own = r["slice"].partition(":")[0]
        efficiencies = []
        for name in (own, "H100"):
            rates = RATES[name]
            work = r["flops"] / rates.flops
            span = [work / seconds_at(r, rates, best=best) for best in (False, True)]
            efficiencies.append(f"{span[0]:.0%} – {span[1]:.0%}")
        rows.append(
            [
                r["model"], r["slice"], r["layout"], f"{r['devices']:,}",
                number(r["flops"] / 1e12), number(sent / 1e6), number(r["memory"] / GB),
                "yes" if r["memory"] <= RATES[own].memory else "no", *efficiencies,
            ]
        )  # fmt: skip
    return table(
        ["model", "slice", "layout", "chips", "TFLOP a chip", "sent a chip, MB",
         "memory a chip, GB", "fits", "efficiency", "the same of H100s"],
        rows, names=3,
    )  # fmt: skip


def simulated_lines(records: Sequence[Record]) -> list[str]:
    """A table of what was run on virtual devices."""
    alone = next(r["seconds"] for r in records if r["devices"] == 1)
    rows = [
        [
            r["layout"] if r["devices"] > 1 else "one device", str(r["devices"]),
            number(sum(found["sent"] for found in r["exchanges"]) / 1e6),
            measure.milliseconds(r["seconds"]), number(r["seconds"] / alone),
        ]
        for r in records
    ]  # fmt: skip
    return table(["layout", "devices", "sent a device, MB", "step, ms", "x one device"], rows)


def ring_lines(records: Sequence[Record]) -> list[str]:
    """A table of the two ways of long attention."""
    rows = [
        [
            str(r["devices"]), f"{r['length']:,}",
            *(number(r[name]["sent"] / 1e6) for name in ("gather", "ring")),
            *(measure.milliseconds(r[name]["seconds"]) for name in ("gather", "ring")),
            *(measure.megabytes(r[name]["temp_bytes"]) for name in ("gather", "ring")),
        ]
        for r in records
    ]  # fmt: skip
    return table(
        ["devices", "tokens", "gather sends, MB", "ring sends, MB", "gather, ms", "ring, ms",
         "gather holds, MB", "ring holds, MB"],
        rows,
    )  # fmt: skip


def why_no_libtpu() -> str:
    """Why nothing is compiled for TPUs; "" where it is."""
    return "" if importlib.util.find_spec("libtpu") else f"libtpu not installed: {INSTALL_LIBTPU}"


def picture(simulated: Sequence[Record]) -> bytes:
    """Time of a step against devices, a curve a layout."""
    curves = {
        layout: [(r["devices"], r["seconds"] / simulated[0]["seconds"]) for r in simulated
                 if r["layout"] == layout or r["devices"] == 1]
        for layout in MESH_AXES
    }  # fmt: skip
    return measure.draw(
        {"virtual devices of one machine": curves}, ("devices", "step, x one device"), TITLE,
        log=False,
    )  # fmt: skip


def run(quick: bool, runs: int, results: Path) -> None:
    """Compiles and measures, and writes scaling.md, .json and .png."""
    missing = why_no_libtpu()
    paper: list[Record] = []
    for case in () if missing else COMPILED[: 1 if quick else None]:
        print(f"{', '.join(case)} …", flush=True)
        paper.append(in_a_process("on_paper", 1, *case))
    simulated = []
    for devices in SIMULATED[: 2 if quick else None]:
        for layout in MESH_AXES if devices > 1 else MESH_AXES[:1]:
            print(f"{devices} virtual devices, {layout} …", flush=True)
            simulated.append(in_a_process("in_simulation", devices, devices, layout, runs))
    length = RING_LENGTH // 16 if quick else RING_LENGTH
    rings = [
        in_a_process("ring_or_gather", n, n, length, runs)
        for n in SIMULATED[1:][: 1 if quick else None]
    ]
    about = measure.describe(
        {"models": {name: plain(make()) for name, make in MODELS.items()}, "tiny": plain(tiny()),
         "rates": {name: rates._asdict() for name, rates in RATES.items()}},
        np.arange(1), seeds=[0], tokens=tiny().data.batch_size * tiny().data.train_length,
        steps=runs,
    )  # fmt: skip
    lines = [
        "## On paper", "", *(paper_lines(paper) if paper else [f"Left out: {missing}."]), "",
        f"- {ROWS_A_DEVICE} rows a chip. Sent: by a chip in a step, each exchange as a ring would. "
        "Efficiency: time of the products at the chip's peak over time of the step; from exchanges "
        "after the products over one axis of the torus (of H100s, the network card), to exchanges "
        "beside them over all links (NVLink).",
        "- H100s: at the bytes of the TPU's program.",
        "", "## In simulation", "", *simulated_lines(simulated), "",
        "- 2 layers of 128, 8 rows of 128, on virtual devices that share this machine's cores: "
        "less than 1.0 is a core that one device left idle, more is what exchange costs.",
        "", "## Keys gathered, or passed round a ring", "", *ring_lines(rings), "",
        "- Softmax over all keys, 4 heads of 64, float32, forward.",
    ]  # fmt: skip
    kinds = {"paper": paper, "simulation": simulated, "ring": rings}
    records = [r | {"kind": kind} for kind, found in kinds.items() for r in found]
    measure.write(results, "scaling", TITLE, lines, about, records, picture(simulated))


def main() -> None:
    """Parses the flags, runs."""
    if sys.argv[1:2] == [CHILD]:
        name, *arguments = json.loads(sys.argv[2])
        print(json.dumps(CHILDREN[name](*arguments)))
        return
    given = measure.parser(__doc__, runs=10).parse_args()
    run(given.quick, given.runs, given.results)


if __name__ == "__main__":
    main()
