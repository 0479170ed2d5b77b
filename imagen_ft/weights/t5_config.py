"""`config.json` of T5 v1.1's encoder in transformers' layout."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imagen_ft.models.t5 import T5Encoder
from launch.errors import InputError
from launch.runtime.limits import make_module

# Our field: (transformers' field, its default if the file lacks it).
_FIELDS = {
    "vocab_size": ("vocab_size", 32128),
    "d_model": ("d_model", 512),
    "d_kv": ("d_kv", 64),
    "d_ff": ("d_ff", 2048),
    "num_layers": ("num_layers", 6),
    "num_heads": ("num_heads", 8),
    "num_buckets": ("relative_attention_num_buckets", 32),
    "max_distance": ("relative_attention_max_distance", 128),
}
# Fields with one supported value: (transformers' default, that value).
_FIXED = {
    "model_type": (None, "t5"),
    "feed_forward_proj": ("relu", "gated-gelu"),
    "dense_act_fn": ("gelu_new", "gelu_new"),
    "is_gated_act": (True, True),
    "is_decoder": (False, False),
    "layer_norm_epsilon": (1e-6, 1e-6),
    "quantization_config": (None, None),
}


def build_t5(config: Mapping[str, Any], where: Any) -> tuple[T5Encoder, Any]:
    """The float32 model that transformers' `config.json` describes, and its parameters' shapes.

    Raises `InputError` naming the first field whose value is not implemented.
    """
    # Unknown fields are ignored: T5's configs carry many that do not concern the encoder.
    for field, (default, ours) in _FIXED.items():
        value = config.get(field, default)
        if value != ours:
            raise InputError(
                f"{where}: {field} must be {ours!r}, the only one implemented, got "
                f"{value!r}; use the encoder of a T5 v1.1"
            )
    fields = {ours: config.get(theirs, default) for ours, (theirs, default) in _FIELDS.items()}
    for ours, value in fields.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(
                f"{where}: {_FIELDS[ours][0]} must be a positive number, got {value!r}"
            )
    # Two signs, each with an exact and a logarithmic half.
    if fields["num_buckets"] < 4 or fields["num_buckets"] % 4:
        raise InputError(
            f"{where}: {_FIELDS['num_buckets'][0]} must be a multiple of 4, got "
            f"{fields['num_buckets']}"
        )
    model = make_module(T5Encoder, fields, f"{where}: t5")
    return model, _shapes(model)


@functools.cache  # tracing a large network takes seconds
def _shapes(model: T5Encoder) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens, tokens > 0)["params"]
