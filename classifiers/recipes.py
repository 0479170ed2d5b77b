"""From a config to a model and its input: what training and evaluation have to agree on."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jaxtyping import Array

from classifiers import mixing
from classifiers.models import presets
from classifiers.models.presets import Classifier
from input_pipeline.augment import policy
from input_pipeline.augment.crop import random_shift
from input_pipeline.files import InputError, read_json, write_json
from input_pipeline.sources import Source
from launch.runtime.config import module_fields, plain

_CLASS_NAMES = "class_names.json"
Mix = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def make_model(config: ml_collections.ConfigDict, num_classes: int) -> Classifier:
    """Builds the model from `name`, of a preset or a module, and fields that differ from it.

    Raises:
        InputError: there is no model of that name, or it has no such field.
    """
    fields = module_fields(config)
    name = fields.pop("name", None)
    if name is None:
        raise InputError("config.model has no name: name a model")
    return presets.make(name, num_classes, **fields)


def save_class_names(workdir: epath.Path, class_names: Sequence[str]) -> None:
    """Keeps what a run's labels are called, in their order, in its directory."""
    write_json(workdir / _CLASS_NAMES, list(class_names))


def load_class_names(workdir: epath.Path) -> list[str] | None:
    """What `save_class_names` has kept; None where nothing was, as in imports.

    Raises:
        InputError: the file is damaged.
    """
    path = workdir / _CLASS_NAMES
    return read_json(path) if path.exists() else None


def init_model(
    model: Classifier, key: jax.Array, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """New variables of a model for images of `image_shape` [h, w, c]."""
    return model.init(key, jnp.zeros((1, *image_shape)))


def make_augment(config: ml_collections.ConfigDict) -> policy.Augment | None:
    """What happens to an image of training.

    Args:
        config: `augment`, see `policy.make_augment`; or `max_shift`, see `random_shift`.

    Raises:
        InputError: a field is wrong.
    """
    if config.get("augment"):
        return policy.make_augment(plain(config.augment))
    shift = config.get("max_shift", 0)
    return functools.partial(random_shift, max_shift=shift) if shift else None


def make_transform(config: ml_collections.ConfigDict) -> policy.Transform | None:
    """What happens to an image of evaluation: `evaluation`, see `policy.make_eval_transform`.

    Raises:
        InputError: a field is wrong, or images of training would have another size.
    """
    found = plain(config.get("evaluation") or {})
    size = (config.get("augment") or {}).get("size")
    if size and not found:
        found = {"size": size}
    return policy.make_eval_transform(found) if found else None


def image_shape(config: ml_collections.ConfigDict, source: Source) -> tuple[int, int, int]:
    """[h, w, c] of what the model sees of a source in evaluation."""
    example, transform = source[0], make_transform(config)
    return (transform(example) if transform else example)["image"].shape


def make_mix(config: ml_collections.ConfigDict) -> Mix | None:
    """Mixup and CutMix: `mix`, a dict of the arguments of `mixing.mix` and `by_domain`.

    Returns:
        A function of a key, images, targets and domains; None where nothing is mixed.

    Raises:
        InputError: a field is wrong.
    """
    fields = dict(plain(config.get("mix") or {}))
    if not fields:
        return None
    by_domain = bool(fields.pop("by_domain", False))
    known = ("mixup", "cutmix", "switch", "probability", "per_example")
    if unknown := sorted(set(fields) - set(known)):
        raise InputError(f"mix has no field {unknown[0]!r}; use {', '.join(known)}, by_domain")
    fields = {"mixup": 0.0, "cutmix": 0.0, **fields}

    def mix(key: Array, images: Array, targets: Array, domain: Array) -> tuple[Array, Array]:
        return mixing.mix(key, images, targets, domain=domain if by_domain else None, **fields)

    # Its numbers are looked at now, and not in the first step.
    shapes = ((2, 4, 4, 3), jnp.float32), ((2, 2), jnp.float32), ((2,), jnp.int32)
    jax.eval_shape(mix, jax.random.key(0), *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    return mix
