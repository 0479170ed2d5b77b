"""Losses of classification."""

import jax
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], label_smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Cross-entropy an example, with targets smoothed towards uniform (Szegedy et al. 2016)."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)
