"""Embeds prompts with a text encoder in batches over all devices, and fills a cache."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float
from tqdm import tqdm

from imagen_ft.text.cache import TextCache
from launch.errors import Diverged, InputError
from launch.runtime.devices.mesh import batch_sharding, fetch_behind
from launch.runtime.types import Array

# Size of a cache's parts, 64 MiB: an interruption loses at most one of them.
PART_BYTES = 2**26


class Embedder(abc.ABC):
    """A text encoder with its weights on the devices."""

    name: str  # for messages
    params: Any  # sharded by `state_shardings`
    mesh: Mesh  # batches are split over its axes data and fsdp

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """[length, d] of one prompt's states."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """Type of the computation and of the states."""

    @abc.abstractmethod
    def tokens(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """The arrays that `encode` takes, each with one row a prompt."""

    @abc.abstractmethod
    def encode(self, *tokens: Array) -> tuple[Array, Array]:
        """States of a batch, and which prompts' are finite, replicated on every process."""

    def embed(
        self, prompts: Sequence[str], batch_size: int
    ) -> Iterator[Float[np.ndarray, "n length d"]]:
        """States of preprocessed prompts, batch by batch, padding included.

        `batch_size` is rounded up to a multiple of the devices that share a batch. Raises
        `Diverged`, naming the prompt, if states are not finite.
        """
        # 1. One shape for all batches, so that the encoder compiles once; the last one is padded.
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        batch_size = -(-min(batch_size, len(prompts)) // ways) * ways

        def states() -> Iterator[tuple[Array, Array]]:
            for first in range(0, len(prompts), batch_size):
                tokens = self.tokens(prompts[first : first + batch_size])
                yield self.encode(*(self._put(rows, batch_size) for rows in tokens))

        # 2. Check each batch on the host while the devices compute the next one.
        starts = range(0, len(prompts), batch_size)
        for first, (array, finite) in zip(starts, fetch_behind(states()), strict=True):
            batch_prompts = prompts[first : first + batch_size]
            count = len(batch_prompts)
            if not finite[:count].all():
                prompt = batch_prompts[int(np.argmin(finite[:count]))]
                raise Diverged(
                    f"{self.name} produced NaN or infinity for the prompt {prompt!r} in "
                    f"{jnp.dtype(self.dtype).name}; set another dtype (bfloat16, float32), or "
                    "check its weights"
                )
            yield np.asarray(array)[:count]

    def _put(self, rows: np.ndarray, batch_size: int) -> Array:
        batch = np.pad(rows, ((0, batch_size - len(rows)), (0, 0)))
        # Every process has the whole batch, and hands its own devices their rows.
        sharding = batch_sharding(self.mesh)
        return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])


def check_vocabulary(pieces: Any, vocab_size: int) -> None:
    """Raises `InputError` if a tokenizer has more tokens than the encoder has embeddings."""
    # JAX raises no error on an index out of range. Fewer tokens than embeddings are usual: T5 pads
    # its table to a round number.
    if len(pieces) > vocab_size:
        raise InputError(
            f"the tokenizer must have at most the text encoder's {vocab_size} tokens, got "
            f"{len(pieces)}; use the tokenizer that belongs to the encoder"
        )


def whole(mesh: Mesh, states: Array) -> tuple[Array, Array]:
    """States, and which prompts' are finite, replicated: the process that writes needs all."""
    results = states, jnp.isfinite(states).all(axis=(1, 2))
    return jax.lax.with_sharding_constraint(results, NamedSharding(mesh, PartitionSpec()))


def fill_cache(
    cache: TextCache | None, embedder: Embedder, prompts: Sequence[str], batch_size: int
) -> None:
    """Embeds preprocessed prompts that the cache lacks, and adds them part by part.

    `cache` is None in processes that only compute.
    """
    batches = embedder.embed(prompts, batch_size)
    if cache is None:
        # All processes must run every batch: the computation is collective.
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
