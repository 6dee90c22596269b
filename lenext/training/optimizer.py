"""Optax optimisers from configs."""

import jax
import optax

from lenext.config import Config


def make_schedule(config: Config, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to the peak, then cosine to zero at `steps`."""
    warmup = min(config.warmup_steps, steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / max(warmup, 1),  # no step is wasted at a rate of 0
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
    )


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW with clipping by global norm; weight decay on matrices only, not on gains."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )
