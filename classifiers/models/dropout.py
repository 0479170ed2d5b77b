"""What networks drop at random in training; randomness comes from the rng 'dropout'."""

import flax.linen as nn
from jaxtyping import Float

from launch.errors import InputError
from launch.runtime.types import Array


def dropout(x: Float[Array, " *shape"], rate: float, train: bool) -> Float[Array, " *shape"]:
    """Drops single values (Srivastava et al. 2014); the others are divided by 1 - rate."""
    return nn.Dropout(rate, deterministic=not train)(x)


def drop_path(x: Float[Array, " *shape"], rate: float, train: bool) -> Float[Array, " *shape"]:
    """Drops a residual branch, example by example: stochastic depth (Huang et al. 2016).

    Branches that stay are divided by 1 - rate, so that evaluation takes all as they are.
    """
    whole = tuple(range(1, x.ndim))  # one draw per example
    return nn.Dropout(rate, broadcast_dims=whole, deterministic=not train)(x)


def is_stochastic(model: nn.Module) -> bool:
    """Whether training a model needs the rng 'dropout'."""
    return any(getattr(model, rate, 0) > 0 for rate in ("dropout", "drop_path"))


def check_rates(**rates: float) -> None:
    """Raises InputError for a rate outside [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise InputError(f"model.{name} must be in [0, 1), got {rate}")
