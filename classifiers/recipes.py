"""From a config to a model and its input: what training and evaluation have to agree on."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from classifiers.models.resnet import ResNet
from input_pipeline.files import InputError
from launch.runtime.config import module_fields

MODELS = {"resnet": ResNet}


def make_model(config: ml_collections.ConfigDict, num_classes: int) -> ResNet:
    """Builds the model from `name` and its fields.

    Raises:
        InputError: there is no model of that name.
    """
    fields = module_fields(config)
    name = fields.pop("name")
    if name not in MODELS:
        raise InputError(f"model.name={name!r}: known are {', '.join(MODELS)}")
    return MODELS[name](num_classes=num_classes, **fields)


def init_model(model: ResNet, key: jax.Array, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """New variables of a model for images of `image_shape` [h, w, c]."""
    return model.init(key, jnp.zeros((1, *image_shape)))
