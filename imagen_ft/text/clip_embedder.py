"""Embeds prompts with CLIP's text encoders, as Stable Diffusion uses them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from classifiers.clip.tokenizer import ClipTokenizer
from classifiers.models.clip_text import ClipTextEncoder, TextStates
from imagen_ft.text.embedder import Embedder, check_vocabulary, whole
from launch.runtime.types import Array


@dataclasses.dataclass(frozen=True)
class ClipEmbedder(Embedder):
    """One text encoder, or SDXL's two, with weights on the devices."""

    models: tuple[ClipTextEncoder, ...]
    params: tuple[dict[str, Any], ...]  # sharded by `state_shardings`
    tokenizers: tuple[ClipTokenizer, ...]  # one a network
    mesh: Mesh

    name = "CLIP"

    def __post_init__(self):
        for model, tokenizer in zip(self.models, self.tokenizers, strict=True):
            check_vocabulary(tokenizer.pieces, model.vocab_size)

    @property
    def shape(self) -> tuple[int, int]:
        """See `Embedder` and `states_of`."""
        return clip_shape(self.models, self.tokenizers[0].max_length)

    @property
    def dtype(self) -> Any:
        """See `Embedder`."""
        return self.models[0].dtype

    def tokens(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """See `Embedder`: the ids of each tokenizer."""
        # Both cut at the same length: one warning is enough.
        numbered = enumerate(self.tokenizers)
        return tuple(tokenizer(prompts, warn=number == 0) for number, tokenizer in numbered)

    def encode(self, *tokens: Array) -> tuple[Array, Array]:
        """See `Embedder`."""
        return _encode(self.models, self.mesh, self.params, tokens)


def clip_shape(models: Sequence[ClipTextEncoder], length: int) -> tuple[int, int]:
    """[rows, d] of the result of `states_of` for `length` tokens."""
    return length + (len(models) > 1), sum(model.width for model in models)


def states_of(outputs: Sequence[TextStates]) -> Float[Array, "b rows d"]:
    """What a U-Net takes of the encoders' outputs.

    One encoder: its last states (Stable Diffusion 2's files leave out the layers behind them). Two:
    their last states but one, concatenated, and behind them one more row with the second one's
    pooled text, padded with zeros; its first `Denoiser.pooled_width` channels are the pooled text.
    """
    if len(outputs) == 1:
        return outputs[0].last
    states = jnp.concatenate([output.penultimate for output in outputs], axis=-1)  # [b, n, d]
    pooled = outputs[-1].pooled
    fill = states.shape[-1] - pooled.shape[-1]
    # One array for both: caches and loaders then need not know of pooled text.
    row = jnp.pad(pooled, ((0, 0), (0, fill)))[:, None]  # [b, 1, d]
    return jnp.concatenate([states, row], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    models: tuple[ClipTextEncoder, ...],
    mesh: Mesh,
    params: tuple[dict[str, Any], ...],
    tokens: tuple[Array, ...],
) -> tuple[Array, Array]:
    outputs: list[Any] = [
        model.apply({"params": own}, ids)
        for model, own, ids in zip(models, params, tokens, strict=True)
    ]
    return whole(mesh, states_of(outputs).astype(models[0].dtype))
