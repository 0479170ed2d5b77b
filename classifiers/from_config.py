"""From a config to a model and its input: what training and evaluation must agree on."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from classifiers.models import presets
from classifiers.models.presets import Classifier
from input_pipeline.augment import policy
from input_pipeline.imagenet import canonical_names
from input_pipeline.source import Source
from launch.errors import InputError
from launch.files import read_json, write_json
from launch.runtime.config import module_fields, plain
from launch.runtime.optional_fields import Defaults, below, defaults_of
from launch.runtime.types import Array

_CLASS_NAMES = "class_names.json"
Mix = Callable[[Array, Array, Array, Array], tuple[Array, Array]]  # key, images, targets, domain


def make_model(config: ml_collections.ConfigDict, num_classes: int) -> Classifier:
    """Builds the model `name`, a preset or a module, with the fields that differ from it."""
    fields = module_fields(config, "model")
    name = fields.pop("name", None)
    if name is None:
        raise InputError("config.model has no name; set config.model.name")
    return presets.make(name, num_classes, **fields)


def lacking_in_model(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `make_model` that the section `model` leaves out."""
    model = make_model(config, num_classes=1)
    return below("model", config, defaults_of(model, leave_out=("num_classes",)))


def save_class_names(workdir: epath.Path, class_names: Sequence[str]) -> None:
    """Writes the names of labels 0, 1, ... into a run directory."""
    write_json(workdir / _CLASS_NAMES, list(class_names))


def load_class_names(workdir: epath.Path) -> list[str] | None:
    """The names that `save_class_names` wrote; None where there are none, as in imports.

    Raises:
        InputError: the file is damaged.
    """
    path = workdir / _CLASS_NAMES
    if not path.exists():
        return None
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} is not a list of names; restore it")
    return list(canonical_names(names))  # as sources name the same classes


def init_model(
    model: Classifier, key: jax.Array, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """New variables of a model for images of `image_shape` [h, w, c]."""
    return dict(model.init(key, jnp.zeros((1, *image_shape))))


def make_augment(config: ml_collections.ConfigDict) -> policy.Augment | None:
    """How training images are augmented, see `policy.make_augment`; None for not at all."""
    return policy.make_augment(plain(config.augment)) if config.get("augment") else None


def make_transform(config: ml_collections.ConfigDict) -> policy.Transform | None:
    """What happens to an image in evaluation, see `policy.make_eval_transform`; None for nothing.

    Raises:
        InputError: a field is wrong, or images of training would have another size.
    """
    spec = plain(config.get("evaluation") or {})
    size = (config.get("augment") or {}).get("size")
    # Without `evaluation`, images get the size that the model was trained with.
    if size and not spec:
        spec = {"size": size}
    return policy.make_eval_transform(spec) if spec else None


def image_shape(config: ml_collections.ConfigDict, source: Source) -> tuple[int, int, int]:
    """[h, w, c] of a source's images as the model sees them in evaluation."""
    example, transform = source[0], make_transform(config)
    return (transform(example) if transform else example)["image"].shape


def expected_input(
    config: ml_collections.ConfigDict,
) -> tuple[int, tuple[int, int, int]] | None:
    """Number of classes and [h, w, 3], if the config gives both; no data is needed then."""
    size = (config.get("evaluation") or config.get("augment") or {}).get("size")
    if not config.get("num_classes") or not size:
        return None
    # Raises for a wrong field.
    make_transform(config)
    return config.num_classes, (size, size, 3)


def check_input(
    expected: tuple[int, tuple[int, int, int]] | None,
    actual: tuple[int, tuple[int, int, int]],
) -> None:
    """Raises InputError where the images are not what the config says of them."""
    if expected is None or expected == actual:
        return
    if expected[0] != actual[0]:
        raise InputError(
            f"config.num_classes must be {actual[0]}, as in config.evaluation_source, got "
            f"{expected[0]}; set it to that"
        )
    raise InputError(
        f"config.evaluation_source must have images of the shape {expected[1]}, got {actual[1]}; "
        "use colour images"
    )
