"""What tasks do with configs besides reading them."""

import json
from typing import Any

import jax.numpy as jnp
import ml_collections


def plain(value: Any) -> Any:
    """A config's value as JSON gives it back: tuples are lists."""
    return json.loads(ml_collections.ConfigDict({"value": value}).to_json())["value"]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts, by dotted path."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        path: leaf
        for key, value in tree.items()
        for path, leaf in flatten(value, f"{prefix}.{key}" if prefix else key).items()
    }


def module_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config as the fields of a Flax module: hashable sequences, a dtype for its name."""
    fields = {
        name: tuple(value) if isinstance(value, list | tuple) else value
        for name, value in config.items()
    }
    return {**fields, "dtype": jnp.dtype(fields.get("dtype", "float32"))}
