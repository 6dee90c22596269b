"""Length extrapolation in attention, in JAX and Flax NNX."""
