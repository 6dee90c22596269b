"""One optimiser step as a pure function of state, batch and step number."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lenext.models import Model, token_figures
from lenext.parallel.meshes import traced_on
from lenext.training.optimizer import where_frozen
from lenext.training.regulariser import EntropyRegulariser, penalty, rows_looked_at
from lenext.workdirs.checkpoints import State

# Layers up to which a step compiles each. Of four, on two CPU cores, that took 14 % off the small
# GAU's step and nothing beyond noise off the tiny decoder's; compilation was no slower for it.
UNROLLED = 4

Gradient = Callable[[Any, dict[str, Array], Array | None], tuple[Any, dict[str, Array]]]
"""(params, rows, dropout key) to (gradient, means): the rows' shares of a batch's."""


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    average: bool = False,
    regulariser: EntropyRegulariser | None = None,
) -> State:
    """The state at step 0; with `average` it holds "ema".

    With a regulariser "optimizer" has two parts, "model" and "entropy".
    """
    params = nnx.to_pure_dict(nnx.state(model))
    state = {"params": params, "optimizer": optimizer.init(params)}
    if regulariser is not None:
        state["optimizer"] = {"model": state["optimizer"], "entropy": regulariser.init(model)}
    # A copy: the step donates its state, and no buffer can be given twice.
    return state | {"ema": jax.tree.map(jnp.copy, params)} if average else state


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    dropout: bool,
    accumulate: int = 1,
    z_loss: float = 0.0,
    ema_decay: float = 0.0,
    regulariser: EntropyRegulariser | None = None,
    frozen: Any = None,
    held: Callable[[Any], Any] = lambda params: params,
    mesh: Mesh | None = None,
    shardings: Any = None,
) -> Callable[[State, dict[str, Array], Array], tuple[State, dict[str, Array]]]:
    """The jitted step: (state, batch, step number from 1) to (next state, metrics).

    The state is donated. Dropout masks follow from `seed` and the step number, so a resumed run
    repeats them. Metrics are of the batch, before the update: loss (nats a predicted token),
    accuracy, grad_norm (before clipping), and z_loss (mean log_z²) and entropy_penalty where they
    are minimised; and param_norm, after it, which is finite only if all parameters are.

    Args:
      graphdef: of the model.
      optimizer: what makes updates of gradients.
      seed: of the dropout masks.
      dropout: whether there are any.
      accumulate: micro-batches to take a batch in, one after the other. They change nothing but
        memory, time and dropout masks: each token weighs what it weighs in the whole batch.
      z_loss: factor of mean log_z² beside the loss (arXiv 2204.02311, section 5).
      ema_decay: of the state's "ema", see `average_parameters`; 0 where it has none.
      regulariser: of the heads' entropies, which the state is to hold a part of.
      frozen: from `frozen_parameters`, what stays as it is: neither gradient nor decay nor
        momentum moves it, and its gradients have no part in any norm. None for a step that moves
        all.
      held: gives the parameters in the types that the model computes with, once a step, see
        `lenext.models.held_as`.
      mesh: over which the work is split; None for one device.
      shardings: of the state, on that mesh.
    """

    def without_frozen(grads):
        if frozen is None:
            return grads
        return where_frozen(frozen, jax.tree.map(jnp.zeros_like, grads), grads)

    def train_step(state, batch, step):
        key = jax.random.fold_in(jax.random.key(seed), step) if dropout else None
        # Of the whole batch, though rows may be only a part of it.
        count = jnp.maximum(jnp.sum(batch["weights"]), 1.0)

        def objective(moving, rows, key):
            params, thresholds = moving
            model = nnx.merge(graphdef, params)
            unroll = len(model.methods) <= UNROLLED
            probe = jnp.asarray(rows_looked_at(rows["tokens"].shape[1])) if regulariser else None
            with traced_on(mesh):
                figures = token_figures(model, rows, dropout_key=key, unroll=unroll, probe=probe)

            def mean(x):
                return jnp.sum(x * figures.weights) / count

            means = {"loss": mean(figures.loss), "accuracy": mean(figures.correct)}
            total = means["loss"]
            if z_loss:
                means["z_loss"] = mean(jnp.square(figures.log_z))
                total = total + z_loss * means["z_loss"]
            if regulariser is not None and figures.rows is not None:
                of_rows = penalty(figures.rows, thresholds)
                means["entropy_penalty"] = jnp.sum(of_rows) / len(batch["tokens"])
                total = total + regulariser.factor * means["entropy_penalty"]
            return total, means

        gradient = jax.grad(objective, has_aux=True)
        params, optimizer_state, entropy = state["params"], state["optimizer"], None
        if regulariser is not None:
            optimizer_state, entropy = optimizer_state["model"], optimizer_state["entropy"]
        moving = held(params), None if entropy is None else entropy["thresholds"]
        if accumulate == 1:
            (grads, d_thresholds), metrics = gradient(moving, batch, key)
            grads = jax.tree.map(lambda x, like: x.astype(like.dtype), grads, params)
        else:
            made, metrics = _accumulated(gradient, moving, batch, key, accumulate)
            grads, d_thresholds = made
        grads = without_frozen(grads)
        metrics["grad_norm"] = optax.tree.norm(grads)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        moved = optax.apply_updates(params, updates)
        # Not by the optimiser: its state is the same whatever is frozen; branches may differ.
        if frozen is not None:
            moved = where_frozen(frozen, params, moved)
        metrics["param_norm"] = optax.tree.norm(moved)
        if regulariser is not None and entropy is not None:
            entropy = regulariser.update(entropy, d_thresholds)
            optimizer_state = {"model": optimizer_state, "entropy": entropy}
        after = {"params": moved, "optimizer": optimizer_state}
        if ema_decay:
            after["ema"] = average_parameters(state["ema"], moved, ema_decay, step)
        return after, metrics

    if mesh is None:
        return jax.jit(train_step, donate_argnums=0)
    return jax.jit(
        train_step, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, P()))
    )


def _accumulated(
    gradient: Gradient, params: Any, batch: dict[str, Array], key: Array | None, parts: int
) -> tuple[Any, dict[str, Array]]:
    """Sums of gradient and means over `parts` micro-batches, of which one is held at a time."""

    def split(x: Array) -> Array:
        # Micro-batch i has the rows i, i + parts, …: each device splits the rows it holds, and
        # all of them work on every micro-batch. Blocks of rows would lie on one device each.
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    def add(grads: Any, part: tuple[dict[str, Array], Array]) -> tuple[Any, dict[str, Array]]:
        rows, number = part
        part_key = None if key is None else jax.random.fold_in(key, number)
        part_grads, means = gradient(params, rows, part_key)
        return jax.tree.map(jnp.add, grads, part_grads), means

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    micro_batches = (jax.tree.map(split, batch), jnp.arange(parts, dtype=jnp.int32))
    grads, means = jax.lax.scan(add, zeros, micro_batches)
    return grads, {name: jnp.sum(x) for name, x in means.items()}


def average_parameters(average: Any, params: Any, decay: float, step: Array) -> Any:
    """The exponential moving average of the parameters after steps 1, 2, … `step`.

    Weights fall by `decay` a step into the past and add up to 1 from the first step on, so that
    the initial values, where averages may start, have no part in it: it needs no correction.

    Args:
      average: that after `step` - 1, which step 1 replaces.
      params: parameters after `step`.
      decay: above 0 and below 1.
      step: from 1.
    """
    # 1 - decay^step, without the digits that float32 would lose in the subtraction.
    total = -jnp.expm1(jnp.asarray(step, jnp.float32) * math.log(decay))
    share = (1 - decay) / total
    return jax.tree.map(lambda a, x: a + share * (x - a), average, params)
