"""`config.json` of CLIP's text encoder in transformers' layout."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from classifiers.models.clip_text import EPSILON, ClipTextEncoder
from imagen_ft.weights.config_fields import own_fields
from launch.errors import InputError
from launch.runtime.limits import building, make_module

MODEL_TYPE = "clip_text_model"
# Fields with one supported value: (transformers' default, that value).
_FIXED: dict[str, tuple[Any, Any]] = {
    "layer_norm_eps": (1e-5, EPSILON),
    "model_type": (None, MODEL_TYPE),
    "quantization_config": (None, None),
}
# Our field: (transformers' field, its default if the file lacks it).
_FIELDS = {
    "width": ("hidden_size", 512),
    "mlp_width": ("intermediate_size", 2048),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 8),
    "projection_width": ("projection_dim", 512),
    "vocab_size": ("vocab_size", 49408),
    "max_length": ("max_position_embeddings", 77),
    "end_token": ("eos_token_id", 49407),
}
# OpenAI's encoders and open_clip's.
_ACTIVATIONS = ("quick_gelu", "gelu")
_WITH_PROJECTION = "CLIPTextModelWithProjection"


def build_clip_text(config: Mapping[str, Any], where: Any) -> tuple[ClipTextEncoder, Any]:
    """The float32 model that transformers' `config.json` describes, and its parameters' shapes.

    Raises `InputError` naming the first field whose value is not implemented.
    """
    own: dict[str, Any] = dict([*_FIELDS.values(), ("hidden_act", "quick_gelu")])
    # Other fields concern training, or other models of transformers.
    known = {name: value for name, value in config.items() if name in {*_FIXED, *own}}
    own = own_fields(known, _FIXED, own, where, "use the text encoder of a Stable Diffusion")
    activation = own["hidden_act"]
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"{where}: hidden_act must be {' or '.join(_ACTIVATIONS)}, got {activation!r}; use the "
            "config.json that came with these weights"
        )
    fields = {ours: own[theirs] for ours, (theirs, _) in _FIELDS.items()}
    fields["activation"] = activation
    # `projection_dim` is set even where the weights have no projection: only the class tells.
    if config.get("architectures") != [_WITH_PROJECTION]:
        fields["projection_width"] = 0
    with building(where):
        model = make_module(ClipTextEncoder, fields, f"{where}: clip_text")
        return model, _shapes(model)


@functools.cache  # tracing a large network takes seconds
def _shapes(model: ClipTextEncoder) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
