"""Losses of classification."""

import jax
import optax
from jaxtyping import Array, Float, Int


def soft_targets(
    labels: Int[Array, " b"], num_classes: int, label_smoothing: float = 0.0
) -> Float[Array, "b classes"]:
    """Labels as probabilities, smoothed towards uniform (Szegedy et al. 2016, section 7)."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def soft_cross_entropy(
    logits: Float[Array, "b classes"], targets: Float[Array, "b classes"]
) -> Float[Array, " b"]:
    """Cross-entropy an example against probabilities; in float32 whatever the logits are."""
    return optax.softmax_cross_entropy(logits.astype(targets.dtype), targets)
