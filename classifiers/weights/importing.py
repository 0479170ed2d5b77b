"""From other libraries' files to a finished run of classifiers.train."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from etils import epath

from classifiers.models.presets import MODULES, Classifier
from classifiers.weights.config_files import build
from classifiers.weights.preprocessing import folder_of, local_copy, origin, preprocessing
from classifiers.weights.weight_files import (
    STEM,
    find_layout,
    load,
    open_tensors,
    trained_channels,
)
from launch.errors import InputError
from launch.runtime.atomic_folder import atomic_folder, check_target
from launch.runtime.checkpoints import checkpoint
from launch.runtime.checkpoints.orbax_options import check_path
from launch.runtime.run_record import seed_name, write_record


def import_run(
    source: str,
    target: str,
    layout: str,
    model: str | None = None,
    pixels: str | None = None,
    size: int | None = None,
    num_classes: int | None = None,
) -> None:
    """Writes weights as a finished run with one seed, for classifiers.evaluate and export.

    `source` is a file, a folder, or owner/name of a repository of the Hub.
    `size` is that of images, None for the weights'; `num_classes` asks for a new head; for `model`
    see `config_files.build`, for `pixels` `layers.PIXELS`; None leaves both to the files.

    Raises:
        InputError: anything is wrong with the files; nothing is written.
    """
    # 1. Look at target and layout first: loading takes longer.
    check_target(epath.Path(target))
    check_path(target)
    weights = local_copy(source, STEM)
    tensors = open_tensors(weights)
    layout_there = find_layout(tensors, source)
    # timm's ResNets have torchvision's names: names alone cannot tell them apart.
    if layout_there != layout and (layout_there, layout) != ("torchvision", "timm"):
        raise InputError(
            f"{source} has {layout_there} weights; pass --from={layout_there}:{source}"
        )
    # 2. Build the model, and load the weights into it.
    overrides = {"pixels": pixels, "num_classes": num_classes}
    given = {name: value for name, value in overrides.items() if value is not None}
    network, of_weights = build(weights, model, **given)
    size = size or of_weights
    image_shape = (size, size, trained_channels(tensors))
    variables = load(weights, network, image_shape, new_head=num_classes is not None)
    # 3. Write a run of zero steps under another name, and rename it when it is whole.
    config = {
        "model": describe(network),
        "seeds": 1,
        "total_steps": 0,
        "evaluation": preprocessing(folder_of(weights), layout).evaluation(size),
        "imported": {**origin(source, weights), "layout": layout},
    }
    with atomic_folder(epath.Path(target)) as folder:
        name = seed_name(write_record(folder, config, inputs={}), "seed_0")
        checkpoint.save_inference(folder / "seed_0", name, variables)


def describe(model: Classifier) -> dict[str, Any]:
    """A model as `config.model`: its module's name, and fields that are not at their defaults."""
    (name,) = (name for name, module in MODULES.items() if type(model) is module)
    fields = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in ("parent", "name", "num_classes", "dtype")
        and getattr(model, field.name) != field.default
    }
    return {"name": name, **fields, "dtype": jnp.dtype(model.dtype).name}
