"""Prompts through T5 and into a cache, in batches over all devices."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float
from tqdm import tqdm

from imagen_ft.models.t5 import T5Encoder
from imagen_ft.text.cache import TextCache
from imagen_ft.text.tokenizer import T5Tokenizer
from launch.errors import Diverged, InputError
from launch.runtime.devices.mesh import batch_sharding, fetch_behind
from launch.runtime.types import Array

# Of a cache's parts. What an interruption loses is one part at most.
PART_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class T5Embedder:
    """T5 with its weights where they will be used.

    Attributes:
        model: the network; its `dtype` is that of the computation and of the states.
        params: its parameters, by `state_shardings` of the mesh.
        tokenizer: of the prompts.
        mesh: batches are split over its axes data and fsdp.
    """

    model: T5Encoder
    params: dict[str, Any]
    tokenizer: T5Tokenizer
    mesh: Mesh

    def __post_init__(self):
        if len(self.tokenizer.pieces) > self.model.vocab_size:
            raise InputError(
                f"the tokenizer has {len(self.tokenizer.pieces)} tokens, the text encoder "
                f"{self.model.vocab_size}: they do not belong together"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """[length, d] of one prompt's states."""
        return self.tokenizer.max_length, self.model.d_model

    def embed(
        self, prompts: Sequence[str], batch_size: int
    ) -> Iterator[Float[np.ndarray, "n length d"]]:
        """States of prompts, batch by batch, padding included.

        Every batch has one shape, so one compilation is enough: the last one is filled up.

        Args:
            prompts: after `captions.preprocess`.
            batch_size: prompts a batch; rounded up to a multiple of the devices it is split over.

        Raises:
            Diverged: T5 has left the finite numbers; names the prompt.
        """
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        batch_size = -(-min(batch_size, len(prompts)) // ways) * ways

        def states() -> Iterator[tuple[jax.Array, jax.Array]]:
            for first in range(0, len(prompts), batch_size):
                batch_prompts = prompts[first : first + batch_size]
                batch = self._put(*self.tokenizer(batch_prompts), batch_size)
                yield _encode(self.model, self.mesh, self.params, *batch)

        starts = range(0, len(prompts), batch_size)
        for first, (array, finite) in zip(starts, fetch_behind(states()), strict=True):
            batch_prompts = prompts[first : first + batch_size]
            count = len(batch_prompts)
            if not finite[:count].all():
                prompt = batch_prompts[int(np.argmin(finite[:count]))]
                raise Diverged(
                    f"T5 made NaN or infinity of the prompt {prompt!r}, computing in "
                    f"{jnp.dtype(self.model.dtype).name}: take another dtype "
                    "(bfloat16, float32), or look at its weights"
                )
            yield np.asarray(array)[:count]

    def _put(self, tokens: np.ndarray, mask: np.ndarray, batch_size: int) -> tuple[Array, Array]:
        padding = ((0, batch_size - len(tokens)), (0, 0))
        sharding = batch_sharding(self.mesh)
        # Every process knows the whole batch, and gives its devices their rows.

        def put(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return put(np.pad(tokens, padding)), put(np.pad(mask, padding))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    model: T5Encoder, mesh: Mesh, params: dict[str, Any], tokens: Array, mask: Array
) -> tuple[Array, Array]:
    states = cast(jax.Array, model.apply({"params": params}, tokens, mask)).astype(model.dtype)
    results = states, jnp.isfinite(states).all(axis=(1, 2))
    # Whole on every process: one of them writes it.
    return jax.lax.with_sharding_constraint(results, NamedSharding(mesh, PartitionSpec()))


def fill_cache(
    cache: TextCache | None, embedder: T5Embedder, prompts: Sequence[str], batch_size: int
) -> None:
    """Embeds prompts and adds them to a cache, part by part.

    Args:
        cache: of the embedder's states; None in the processes that only compute.
        embedder: of the prompts.
        prompts: after `captions.preprocess`, none of them in the cache.
        batch_size: prompts a batch.
    """
    batches = embedder.embed(prompts, batch_size)
    if cache is None:
        for _ in batches:
            pass
        return
    part_rows = max(1, PART_BYTES // cache.row_bytes)
    states, first = np.empty((0, *cache.shape), cache.dtype), 0
    with tqdm(total=len(prompts), desc="embed", unit="prompt") as bar:
        for batch in batches:
            states = np.concatenate([states, batch])
            bar.update(len(batch))
            while len(states) >= part_rows or (bar.n == len(prompts) and len(states)):
                count = min(part_rows, len(states))
                cache.append(prompts[first : first + count], states[:count])
                states, first = states[count:], first + count
