"""Low-rank adapters (LoRA, Hu et al. 2021, section 4.1): W + (alpha / rank) * down @ up.

Two small matrices of each chosen kernel are trained, moved and saved in the place of the network.
They are added to the kernels before a network is called, so that any network can have them.
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

# The attentions' projections: of queries, keys, values and outputs, in all our networks' names.
_ATTENTION = r"attention.*/((attn\d_)?to_|add_|query|key|value|text_key|text_value|out/)"
_DTYPES = ("float32", "bfloat16")
_FIELDS = ("rank", "alpha", "targets", "base_dtype")
_MOST_RANK = 2**14
_DOWN, _UP = "down", "up"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels of a network are adapted, and how.

    Attributes:
        rank: of what is added to each.
        scale: alpha / rank; the product is multiplied by it.
        modules: paths of the modules whose kernels are adapted.
        base_dtype: that the network's own weights are kept in while adapters are trained.
    """

    rank: int
    scale: float
    modules: tuple[tuple[str, ...], ...]
    base_dtype: str = "float32"

    def init(self, key: Key[Array, ""], params: PyTree) -> PyTree:
        """New adapters, which change nothing yet: `up` is 0.

        Args:
            key: randomness of `down`.
            params: of the network, or their shapes: kernels [..., in, out].

        Returns:
            By module `down` [..., in, rank] and `up` [rank, out], float32.
        """
        kernels = flax.traverse_util.flatten_dict(params)
        adapters = {}
        for number, module in enumerate(self.modules):
            *window, inputs, outputs = kernels[(*module, "kernel")].shape
            # As layers of torch begin, which is what public adapters were trained from.
            limit = 1 / math.sqrt(math.prod(window) * inputs)
            shape = (*window, inputs, self.rank)
            own = jax.random.fold_in(key, number)
            adapters[(*module, _DOWN)] = jax.random.uniform(own, shape, minval=-limit, maxval=limit)
            adapters[(*module, _UP)] = jnp.zeros((self.rank, outputs))
        return flax.traverse_util.unflatten_dict(adapters)

    def shapes(self, params: PyTree) -> PyTree:
        """Shapes of what `init` makes."""
        return jax.eval_shape(self.init, jax.random.key(0), params)

    def merged(self, params: PyTree, adapters: PyTree) -> PyTree:
        """Parameters of the network with the adapters in them; those of other modules are shared.

        Args:
            params: of the network.
            adapters: see `init`.
        """
        kernels = flax.traverse_util.flatten_dict(params)
        parts = flax.traverse_util.flatten_dict(adapters)
        for module in self.modules:
            path = (*module, "kernel")
            down, up = parts[(*module, _DOWN)], parts[(*module, _UP)]
            added = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)
            kernels[path] = kernels[path].astype(jnp.float32) + self.scale * added
        return flax.traverse_util.unflatten_dict(kernels)


def make_lora(config: Fields, params: PyTree, field: str = "config.lora") -> Lora:
    """Reads which kernels are adapted.

    Args:
        config: `rank`; where the defaults shall not hold `alpha` (the rank), `targets`, regular
            expressions searched for in paths such as `mid_block_attentions_0/to_q/kernel` (the
            attentions' projections where there is none), and `base_dtype` ('float32' or
            'bfloat16').
        params: of the network, or their shapes.
        field: the config's name, for messages.

    Raises:
        InputError: a field is wrong or missing, or a target is found in no kernel's path.
    """
    if unknown := sorted(set(config) - set(_FIELDS)):
        raise InputError(f"{field} has no field {unknown[0]!r}; use {', '.join(_FIELDS)}")
    if "rank" not in config:
        raise InputError(f"{field}.rank is missing; set it, 16 is usual")
    check_numbers(config, {"rank": (1, _MOST_RANK)}, field)
    alpha = config.get("alpha", config["rank"])
    if isinstance(alpha, bool) or not (isinstance(alpha, int | float) and 0 < alpha < math.inf):
        raise InputError(
            f"{field}.alpha must be a number above 0, got {alpha!r}; the rank is usual"
        )
    dtype = config.get("base_dtype", "float32")
    if dtype not in _DTYPES:
        raise InputError(f"{field}.base_dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    targets = config.get("targets", ()) or (_ATTENTION,)
    return Lora(config["rank"], alpha / config["rank"], _modules(field, targets, params), dtype)


def _modules(field: str, targets: Any, params: PyTree) -> tuple[tuple[str, ...], ...]:
    """Paths of the modules that a target is found in."""
    flat = flax.traverse_util.flatten_dict(params)
    kernels = {path: leaf for path, leaf in flat.items() if path[-1] == "kernel"}
    hits = matching(f"{field}.targets", targets, flax.traverse_util.unflatten_dict(kernels))
    flat_hits: dict[tuple[str, ...], bool] = flax.traverse_util.flatten_dict(hits)
    return tuple(sorted(path[:-1] for path, hit in flat_hits.items() if hit))
