"""Losses of classification, per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Float, Int

from launch.errors import InputError
from launch.runtime.types import Array


def soft_targets(
    labels: Int[Array, " b"], num_classes: int, label_smoothing: float = 0.0
) -> Float[Array, "b classes"]:
    """Labels as probabilities, smoothed towards uniform (Szegedy et al. 2016, section 7)."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def soft_cross_entropy(
    logits: Float[Array, "b classes"], targets: Float[Array, "b classes"]
) -> Float[Array, " b"]:
    """Cross-entropy per example against probabilities, in the targets' float32."""
    return optax.softmax_cross_entropy(logits.astype(targets.dtype), targets)


def binary_cross_entropy(
    logits: Float[Array, "b classes"], targets: Float[Array, "b classes"]
) -> Float[Array, " b"]:
    """Binary cross-entropy per example, the mean over classes, in the targets' float32."""
    # Touvron et al. 2022 (DeiT III), section 3.2; after Wightman et al. 2021, section 3.1: every
    # class in a mixed image is a target of 1, however small its share.
    present = (targets > 0).astype(targets.dtype)
    return optax.sigmoid_binary_cross_entropy(logits.astype(targets.dtype), present).mean(-1)


LOSSES = {"cross_entropy": soft_cross_entropy, "bce": binary_cross_entropy}


def make_loss(config: ml_collections.ConfigDict) -> Callable[[Array, Array], Array]:
    """The loss of `config.loss`, cross-entropy by default; raises InputError for a wrong field."""
    name, smoothing = config.get("loss", "cross_entropy"), config.label_smoothing
    if name not in LOSSES:
        raise InputError(f"config.loss must be one of {', '.join(LOSSES)}, got {name!r}")
    if not 0.0 <= smoothing < 1.0:
        raise InputError(f"config.label_smoothing must be at least 0 and below 1, got {smoothing}")
    if smoothing and name == "bce":  # any share above 0 is a target of 1 there
        raise InputError(
            "config.label_smoothing must be 0 for 'bce', where it would make every class a "
            f"target, got {smoothing}; set it to 0"
        )
    return LOSSES[name]


def domain_weights(config: ml_collections.ConfigDict) -> tuple[float, float]:
    """Factors of the losses of real and synthetic examples; raises InputError for a wrong one."""
    weight = config.get("synthetic_loss_weight", 1.0)
    if not 0.0 <= weight < float("inf"):
        raise InputError(f"config.synthetic_loss_weight must be at least 0, got {weight}")
    if weight != 1.0 and len(config.train_sources) < 2:
        raise InputError(
            f"config.synthetic_loss_weight={weight} weighs synthetic images against real ones, but "
            "config.train_sources has one source; set it to 1, or add the other source"
        )
    return 1.0, weight  # Diversify, Don't Fine-Tune, section 3.3: lambda


def weighted(
    values: Float[Array, " b"], domain: Int[Array, " b"], weights: tuple[float, float]
) -> Float[Array, " b"]:
    """Losses times the weight of their domain: 0 is real, 1 synthetic."""
    if weights == (1.0, 1.0):  # leaves the compiled program as it is without weights
        return values
    real, synthetic = weights
    return values * jnp.where(domain == 0, real, synthetic)
