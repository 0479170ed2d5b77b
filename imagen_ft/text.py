"""Prompts to text states: a byte-level tokenizer and a frozen T5 encoder."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Bool, Float, Int

from imagen_ft.models.t5 import T5Encoder
from input_pipeline.files import InputError
from launch.runtime.config import module_fields

# ByT5's convention (Xue et al. 2022): three special ids, then the 256 bytes.
PAD, END, FIRST_BYTE = 0, 1, 3
VOCABULARY = FIRST_BYTE + 256
# Prompts encoded at a time.
BATCH = 16


def tokenize(
    prompts: Sequence[str], max_length: int
) -> tuple[Int[np.ndarray, "n length"], Bool[np.ndarray, "n length"]]:
    """UTF-8 bytes, an end token, padding.

    Returns:
        The ids, and which of them are not padding.

    Raises:
        InputError: a prompt is too long; it is named.
    """
    tokens = np.full((len(prompts), max_length), PAD, np.int32)
    for row, prompt in enumerate(prompts):
        ids = [FIRST_BYTE + byte for byte in prompt.encode()] + [END]
        if len(ids) > max_length:
            raise InputError(
                f"prompt {prompt!r} has {len(ids)} tokens, text.max_length is {max_length}"
            )
        tokens[row, : len(ids)] = ids
    return tokens, tokens != PAD


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A frozen T5 encoder with weights drawn from a fixed seed: it needs no download.

    Distinct prompts get distinct states, which is all that a closed list of class names asks for.

    Attributes:
        model: the network.
        max_length: tokens a prompt, padding included.
        seed: of the weights.
    """

    model: T5Encoder
    max_length: int
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """[length, d] of one prompt's states."""
        return self.max_length, self.model.d_model

    def embed(self, prompts: Sequence[str]) -> Float[np.ndarray, "n length d"]:
        """States of the prompts; padding is kept, and masked inside the encoder only."""
        tokens, mask = tokenize(prompts, self.max_length)
        states = []
        for first in range(0, len(prompts), BATCH):
            part = slice(first, first + BATCH)
            fill = ((0, BATCH - len(tokens[part])), (0, 0))
            batch = _encode(
                self.model, self.seed, np.pad(tokens[part], fill), np.pad(mask[part], fill)
            )
            states.append(np.asarray(batch)[: len(tokens[part])])
        return np.concatenate(states)

    def null(self) -> Float[np.ndarray, "1 length d"]:
        """The states that stand for no text: those of the empty prompt, as DeepFloyd IF has it."""
        return self.embed([""])

    def parameters(self) -> dict:
        """Shapes of the weights."""
        tokens = jnp.zeros((1, self.max_length), jnp.int32)
        return jax.eval_shape(self.model.init, jax.random.key(0), tokens, tokens > 0)["params"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(model: T5Encoder, seed: int, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return model.apply(model.init(jax.random.key(seed), tokens[:1], mask[:1]), tokens, mask)


def make_text_encoder(config: ml_collections.ConfigDict) -> TextEncoder:
    """Builds the encoder from `max_length`, `seed` and `model` (fields of `T5Encoder`)."""
    model = T5Encoder(vocab_size=VOCABULARY, **module_fields(config.model))
    return TextEncoder(model, config.max_length, config.seed)


def check_prompts(
    prompts: Sequence[str], class_names: Sequence[str], places: Sequence[str] | None = None
) -> None:
    """A model of a closed list of classes knows nothing else.

    Args:
        prompts: to be checked.
        class_names: what they may be.
        places: where each comes from, for the message.

    Raises:
        InputError: names the first prompt that is no class name, and the class names.
    """
    for row, prompt in enumerate(prompts):
        if prompt not in class_names:
            place = places[row] if places else f"prompt {row + 1}"
            shown = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
            raise InputError(
                f"{place}: {prompt!r} is not a class of this model; use one of {shown}"
            )
