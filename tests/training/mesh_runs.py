"""Trains, evaluates and attends on meshes: what `test_meshes` starts in a process of four devices.

python -m tests.training.mesh_runs DATA_DIR OUT
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from lenext.attention import make_method
from lenext.attention.catalogue import CATALOGUE
from lenext.config import Config
from lenext.evaluation import evaluate
from lenext.models.attention import Attention, Context
from lenext.parallel.meshes import copied_to, make_mesh, traced_on
from lenext.training import train
from tests.training.common import tiny_config, tiny_decoder_config
from tests.training.runs import interruption

LAYOUTS = {
    "data": {"data": 4},
    "fsdp": {"data": 1, "fsdp": 4},
    "tensor": {"data": 1, "tensor": 4},
    "sequence": {"data": 2, "sequence": 2},
}
FAMILIES = ("gau", "decoder")
TILED = ("softmax", "lssar", "windowed", "alibi", "adaptive", "kerple_log", "forgetting")
"""What `blockwise` computes in tiles of each of its ways."""


def family_config(family: str, data_dir: Path) -> Config:
    """A run of six steps, with what a mesh could get wrong: dropout, averages, learned parts."""
    if family == "gau":
        config = tiny_config(data_dir)
        config.model.dropout = 0.1
    else:
        config = tiny_decoder_config(data_dir, "lssar")
        config.model.method = "lssar|kerple_log"
        config.training.ema_decay = 0.9
    config.training.update(steps=6, eval_every=3, checkpoint_every=3)
    config.eval.update(methods="softmax,rerope+log_length,lm_infinite", lengths="16,50")
    return config


def attention(name: str, implementation: str, mesh: jax.sharding.Mesh | None) -> list[jax.Array]:
    """Attention of padded, packed rows; by blocks, the gradients of what it was given, too."""
    layer = Attention(
        make_method(name, train_length=8), hidden_size=8, num_heads=2, num_kv_heads=2, head_dim=8,
        causal=name != "softmax",
    )  # fmt: skip
    layer.implementation = implementation
    key = jax.random.key(0)
    q, k, v, weights = (
        jax.random.normal(jax.random.fold_in(key, i), (2, 24, 2, 8)) for i in range(4)
    )
    for path, parameter in nnx.to_flat_state(nnx.state(layer)):
        if path[-1] == "kernel":  # of gates, which starts at zero
            parameter[...] = jax.random.normal(key, parameter.shape)
    segments = jnp.asarray([[0] * 24, [0] * 9 + [1] * 15])
    context = Context(mask=jnp.arange(24)[None] < jnp.asarray([[24], [22]]), segment_ids=segments)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        with traced_on(mesh):
            out, _ = layer(q, k, v, v[:, :, 0], context)
        out = jnp.where(context.mask[..., None, None], out, 0.0)
        return jnp.sum(out * weights), out

    if mesh is not None:
        q, k, v = copied_to((q, k, v), mesh)
    if implementation == "naive":  # nothing of ours in its backward pass
        return [jax.jit(loss)(q, k, v)[1]]
    take = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, out), grads = take(q, k, v)
    return [out, *grads]


def largest_differences(mesh: jax.sharding.Mesh) -> dict[str, float]:
    """By method and implementation, between what a mesh gives and one device."""
    wanted = [(name, "naive") for name in CATALOGUE] + [(name, "blockwise") for name in TILED]
    found = {}
    for name, implementation in wanted:
        ours, theirs = (attention(name, implementation, on) for on in (mesh, None))
        found[f"{name}, {implementation}"] = max(
            float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
            for a, b in zip(ours, theirs, strict=True)
        )
    return found


def main(data_dir: Path, out: Path) -> None:
    """OUT/FAMILY_LAYOUT are runs, OUT/moved one that stopped on the way, OUT/attention.json."""
    for family in FAMILIES:
        for layout, sizes in LAYOUTS.items():
            config = family_config(family, data_dir)
            config.mesh.update(sizes)
            train(config, out / f"{family}_{layout}")
            if layout in ("data", "sequence"):
                evaluate(config, out / f"{family}_{layout}")
    config = family_config("decoder", data_dir)
    config.mesh.update(LAYOUTS["tensor"])
    with interruption(5, "step"):
        train(config, out / "moved")
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 4})
    found = largest_differences(make_mesh(config.mesh))
    (out / "attention.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
