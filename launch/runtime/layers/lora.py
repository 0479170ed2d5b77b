"""Low-rank adapters (LoRA, Hu et al. 2021, section 4.1): W + (alpha / rank) * down @ up.

Two small matrices for each chosen kernel are trained and saved instead of the network. They are
added to the kernels before the network is called, so any network can have them.
"""

import dataclasses
import math
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Key, PyTree

from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.layers.paths import matching
from launch.runtime.limits import check_numbers
from launch.runtime.types import Array

# Projections of attentions: to queries, keys, values and outputs, by the names in all networks.
_ATTENTION = r"attention.*/((attn\d_)?to_|add_|query|key|value|text_key|text_value|out/)"
_DTYPES = ("float32", "bfloat16")
_FIELDS = ("rank", "alpha", "targets", "base_dtype")
_MOST_RANK = 2**14
_DOWN, _UP = "down", "up"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels of a network are adapted, and how."""

    rank: int
    scale: float  # alpha / rank, which multiplies down @ up
    modules: tuple[tuple[str, ...], ...]  # paths of the modules whose kernels are adapted
    base_dtype: str = "float32"  # the network's own weights are kept in it while adapters train

    def init(self, key: Key[Array, ""], params: PyTree) -> PyTree:
        """New float32 adapters: for each module `down` [..., in, rank] and `up` [rank, out].

        `params`, or their shapes, hold kernels [..., in, out]. `up` is 0, so nothing changes yet.
        """
        kernels = flax.traverse_util.flatten_dict(params)
        adapters = {}
        for number, module in enumerate(self.modules):
            *window, inputs, outputs = kernels[(*module, "kernel")].shape
            # torch's initialisation of layers, which public adapters were trained from.
            limit = 1 / math.sqrt(math.prod(window) * inputs)
            shape = (*window, inputs, self.rank)
            own = jax.random.fold_in(key, number)
            adapters[(*module, _DOWN)] = jax.random.uniform(own, shape, minval=-limit, maxval=limit)
            adapters[(*module, _UP)] = jnp.zeros((self.rank, outputs))
        return flax.traverse_util.unflatten_dict(adapters)

    def shapes(self, params: PyTree) -> PyTree:
        """The shapes of `init`'s result."""
        return jax.eval_shape(self.init, jax.random.key(0), params)

    def merged(self, params: PyTree, adapters: PyTree) -> PyTree:
        """The network's parameters with adapters added; leaves of other modules are shared."""
        kernels = flax.traverse_util.flatten_dict(params)
        parts = flax.traverse_util.flatten_dict(adapters)
        for module in self.modules:
            path = (*module, "kernel")
            down, up = parts[(*module, _DOWN)], parts[(*module, _UP)]
            # [..., in, rank] @ [rank, out] to [..., in, out]; exact, as it is added to weights.
            added = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)
            kernels[path] = kernels[path].astype(jnp.float32) + self.scale * added
        return flax.traverse_util.unflatten_dict(kernels)


def make_lora(config: Fields, params: PyTree, field: str = "config.lora") -> Lora:
    """Reads a config of adapters for a network's parameters, or their shapes.

    `rank` is required. Optional: `alpha` (the rank); `targets`, regular expressions searched for in
    paths such as `mid_block_attentions_0/to_q/kernel` (the attentions' projections); `base_dtype`,
    'float32' or 'bfloat16'. `field` names the config in messages. Raises `InputError` for a wrong
    or missing field, or a target that matches no kernel.
    """
    if unknown := sorted(set(config) - set(_FIELDS)):
        raise InputError(f"{field} has no field {unknown[0]!r}; use {', '.join(_FIELDS)}")
    if "rank" not in config:
        raise InputError(f"{field}.rank is missing; set it (16 is usual)")
    check_numbers(config, {"rank": (1, _MOST_RANK)}, field)
    alpha = config.get("alpha", config["rank"])
    if isinstance(alpha, bool) or not (isinstance(alpha, int | float) and 0 < alpha < math.inf):
        raise InputError(
            f"{field}.alpha must be a number above 0, got {alpha!r}; the value of rank is usual"
        )
    dtype = config.get("base_dtype", "float32")
    if dtype not in _DTYPES:
        raise InputError(f"{field}.base_dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    targets = config.get("targets", ()) or (_ATTENTION,)
    return Lora(config["rank"], alpha / config["rank"], _modules(field, targets, params), dtype)


def _modules(field: str, targets: Any, params: PyTree) -> tuple[tuple[str, ...], ...]:
    flat = flax.traverse_util.flatten_dict(params)
    kernels = {path: leaf for path, leaf in flat.items() if path[-1] == "kernel"}
    hits = matching(f"{field}.targets", targets, flax.traverse_util.unflatten_dict(kernels))
    flat_hits: dict[tuple[str, ...], bool] = flax.traverse_util.flatten_dict(hits)
    return tuple(sorted(path[:-1] for path, hit in flat_hits.items() if hit))
