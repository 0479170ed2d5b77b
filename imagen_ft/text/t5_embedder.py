"""Embeds prompts with T5 in batches over all devices."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_ft.models.t5 import T5Encoder
from imagen_ft.text.embedder import Embedder, check_vocabulary, whole
from imagen_ft.text.tokenizer import T5Tokenizer
from launch.runtime.types import Array


@dataclasses.dataclass(frozen=True)
class T5Embedder(Embedder):
    """T5 with its weights on the devices."""

    model: T5Encoder  # its `dtype` is that of the states, too
    params: dict[str, Any]
    tokenizer: T5Tokenizer
    mesh: Mesh

    name = "T5"

    def __post_init__(self):
        check_vocabulary(self.tokenizer.pieces, self.model.vocab_size)

    @property
    def shape(self) -> tuple[int, int]:
        """See `Embedder`."""
        return self.tokenizer.max_length, self.model.d_model

    @property
    def dtype(self) -> Any:
        """See `Embedder`."""
        return self.model.dtype

    def tokens(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """See `Embedder`: ids, and a mask that is False on padding."""
        return self.tokenizer(prompts)

    def encode(self, *tokens: Array) -> tuple[Array, Array]:
        """See `Embedder`."""
        return _encode(self.model, self.mesh, self.params, *tokens)


# At module level, so that embedders with equal models share one compilation.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    model: T5Encoder, mesh: Mesh, params: dict[str, Any], tokens: Array, mask: Array
) -> tuple[Array, Array]:
    # The model returns float32; states are kept in the type of the computation.
    states = cast(jax.Array, model.apply({"params": params}, tokens, mask)).astype(model.dtype)
    return whole(mesh, states)
