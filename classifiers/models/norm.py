"""Batch normalisation, plain or with a second set of statistics for synthetic images."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from launch.errors import InputError
from launch.runtime.types import Array

# From `name` and perhaps `scale_init` to a function of activations.
Norm = Callable[..., Callable[[Array], Array]]
_PREFIXES = ("", "auxiliary_")  # before the names of the real and of the synthetic set


def make_norm(
    *,
    train: bool,
    momentum: float,
    dtype: Any,
    epsilon: float = 1e-5,
    auxiliary: bool = False,
    domain: Int[Array, " b"] | None = None,
) -> Norm:
    """Makes the norms of a network in one call of it: `norm(name=..., scale_init=...)(x)`.

    With `auxiliary` they are `AuxiliaryBatchNorm`, for which `domain` says of each example whether
    it is real (0) or synthetic (1). Raises InputError for training without it.
    """
    fields = dict(momentum=momentum, epsilon=epsilon, dtype=dtype)
    if not auxiliary:
        return functools.partial(nn.BatchNorm, use_running_average=not train, **fields)
    if train and domain is None:
        raise InputError(
            "model.auxiliary_batch_norm needs the domain of every example in training; pass domain"
        )

    def norm(**own: Any) -> Callable[[Array], Array]:
        return functools.partial(AuxiliaryBatchNorm(**fields, **own), domain=domain, train=train)

    return norm


class AuxiliaryBatchNorm(nn.Module):
    """Batch norm with separate statistics, scale and bias for synthetic images.

    Xie et al. 2020 (AdvProp), section 4; for synthetic images "Diversify, Don't Fine-Tune" (2023),
    section 3.3. The set of real images has the names of plain batch norm.
    """

    momentum: float  # of the moving statistics
    epsilon: float = 1e-5
    dtype: Any = jnp.float32  # of the output; parameters and statistics are float32
    scale_init: Callable[..., Array] = nn.initializers.ones  # of both scales

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        domain: Int[Array, " b"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Normalised activations; `domain` is 0 for real and 1 for synthetic, None for all real.

        Training uses the statistics of each domain's examples in the whole batch, and updates the
        moving ones, except those of a domain without examples.
        """
        synthetic = jnp.zeros(len(x), bool) if domain is None else domain != 0
        # Shared by both domains: their sums differ only in which examples count.
        per_example = _moments(x) if train else None
        # Both sets are made whatever the batch holds: variables must not depend on data.
        affine = []
        for prefix, members in zip(_PREFIXES, (~synthetic, synthetic), strict=True):
            mean, var = self._statistics(prefix, members, x.shape[-1], per_example)
            scale = self.param(prefix + "scale", self.scale_init, mean.shape, jnp.float32)
            bias = self.param(prefix + "bias", nn.initializers.zeros, mean.shape, jnp.float32)
            affine.append((mean, jax.lax.rsqrt(var + self.epsilon) * scale, bias))

        def choose(real: Float[Array, " c"], auxiliary: Float[Array, " c"]) -> Array:
            if domain is None:
                return real[None, None, None]
            return jnp.where(synthetic[:, None], auxiliary[None], real[None])[
                :, None, None
            ]  # [b, 1, 1, c]

        # Each example is normalised with the mean, scale and bias of its own domain.
        means, scales, biases = (choose(*pair) for pair in zip(*affine, strict=True))
        return ((x - means) * scales + biases).astype(self.dtype)

    def _statistics(
        self,
        prefix: str,
        members: Bool[Array, " b"],
        channels: int,
        per_example: tuple[Array, Array] | None,
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        moving = [
            self.variable("batch_stats", prefix + name, init, (channels,), jnp.float32)
            for name, init in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        if per_example is None:
            mean, var = (old.value for old in moving)
            return mean, var
        # Masked sums instead of slices, whose shapes would depend on data. Across devices jit adds
        # up the batch, so these are the statistics of all of it.
        count = members.sum()
        mean, square = (
            jnp.where(members[:, None], value, 0).sum(0) / jnp.maximum(count, 1)
            for value in per_example
        )
        moments = mean, jnp.maximum(square - mean**2, 0)  # rounding may make it negative
        # Init runs on zeros, which would move the fresh statistics.
        if not self.is_initializing():
            for old, new in zip(moving, moments, strict=True):
                moved = self.momentum * old.value + (1 - self.momentum) * new
                old.value = jnp.where(count > 0, moved, old.value)
        return moments


def _moments(x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Mean and mean square over each example's pixels, in float32."""
    x = x.astype(jnp.float32)
    return x.mean((1, 2)), (x**2).mean((1, 2))
