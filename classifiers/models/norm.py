"""Batch normalisation, plain or with a second set for synthetic images."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from launch.errors import InputError
from launch.runtime.types import Array

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
    """What makes the norms of a network in one call of it.

    Args:
        train: use and update the statistics of the batch.
        momentum: of the moving statistics.
        dtype: of the output.
        epsilon: added to variances.
        auxiliary: `AuxiliaryBatchNorm` instead of plain batch norm.
        domain: of each example, for `AuxiliaryBatchNorm`.

    Returns:
        `norm(name=..., scale_init=...)`, a function of activations.

    Raises:
        InputError: an auxiliary set is to be trained, and nobody says which examples are its.
    """
    fields = dict(momentum=momentum, epsilon=epsilon, dtype=dtype)
    if not auxiliary:
        return functools.partial(nn.BatchNorm, use_running_average=not train, **fields)
    if train and domain is None:
        raise InputError("model.auxiliary_batch_norm: training needs the domain of every example")

    def norm(**own: Any) -> Callable[[Array], Array]:
        return functools.partial(AuxiliaryBatchNorm(**fields, **own), domain=domain, train=train)

    return norm


class AuxiliaryBatchNorm(nn.Module):
    """Batch norm with statistics, scale and bias of its own for synthetic images.

    Xie et al. 2020 (AdvProp), section 4; for synthetic images "Diversify, Don't Fine-Tune" (2023),
    section 3.3. The set of real images has the names that plain batch norm gives it.

    Attributes:
        momentum: of the moving statistics.
        epsilon: added to variances.
        dtype: of the output; parameters and statistics are float32.
        scale_init: how both scales start.
    """

    momentum: float
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: Callable[..., Array] = nn.initializers.ones

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        domain: Int[Array, " b"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Normalised activations.

        Args:
            x: activations.
            domain: 0 real, 1 synthetic; None is all real.
            train: use the statistics of each domain's examples in the whole batch, and update the
                moving ones; those of a domain without examples stay.
        """
        synthetic = jnp.zeros(len(x), bool) if domain is None else domain != 0
        per_example = _moments(x) if train else None
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

        means, scales, biases = (choose(*pair) for pair in zip(*affine, strict=True))
        return ((x - means) * scales + biases).astype(self.dtype)

    def _statistics(
        self,
        prefix: str,
        members: Bool[Array, " b"],
        channels: int,
        per_example: tuple[Array, Array] | None,
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Mean and variance to normalise a domain's examples with."""
        moving = [
            self.variable("batch_stats", prefix + name, init, (channels,), jnp.float32)
            for name, init in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        if per_example is None:
            mean, var = (old.value for old in moving)
            return mean, var
        count = members.sum()
        mean, square = (
            jnp.where(members[:, None], value, 0).sum(0) / jnp.maximum(count, 1)
            for value in per_example
        )
        moments = mean, jnp.maximum(square - mean**2, 0)
        if not self.is_initializing():
            for old, new in zip(moving, moments, strict=True):
                moved = self.momentum * old.value + (1 - self.momentum) * new
                old.value = jnp.where(count > 0, moved, old.value)
        return moments


def _moments(x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Mean and mean square over each example's pixels, in float32."""
    x = x.astype(jnp.float32)
    return x.mean((1, 2)), (x**2).mean((1, 2))
