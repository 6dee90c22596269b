"""One optimiser step as a pure function of state, batch and step number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from lenext.models import token_figures

State = dict[str, Any]
"""{"params": pure dict of arrays, "optimizer": Optax state}."""


def init_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> State:
    """The state at step 0."""
    params = nnx.to_pure_dict(nnx.state(model))
    return {"params": params, "optimizer": optimizer.init(params)}


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    dropout: bool,
) -> Callable[[State, dict[str, Array], Array], tuple[State, dict[str, Array]]]:
    """The jitted step: (state, batch, step number) to (next state, metrics).

    The state is donated. Dropout masks follow from `seed` and the step number, so a resumed run
    repeats them. Metrics are of the batch, before the update: loss (nats a predicted token),
    accuracy, grad_norm (before clipping).
    """

    def train_step(state, batch, step):
        key = jax.random.fold_in(jax.random.key(seed), step) if dropout else None

        def loss_function(params):
            figures = token_figures(nnx.merge(graphdef, params), batch, dropout_key=key)
            count = jnp.maximum(jnp.sum(figures.weights), 1.0)
            loss = jnp.sum(figures.loss * figures.weights) / count
            return loss, jnp.sum(figures.correct * figures.weights) / count

        value_and_grad = jax.value_and_grad(loss_function, has_aux=True)
        (loss, accuracy), grads = value_and_grad(state["params"])
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.tree.norm(grads)}
        return {"params": params, "optimizer": optimizer_state}, metrics

    return jax.jit(train_step, donate_argnums=0)
