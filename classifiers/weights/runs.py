"""Weights as runs of classifiers.train: an import is a finished one, and any can be exported."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import ml_collections
from etils import epath

from classifiers import from_config
from classifiers.models.presets import MODULES, Classifier
from classifiers.weights.configs import build, crop_ratio, write_configs
from classifiers.weights.layouts import entries
from classifiers.weights.loading import (
    find_layout,
    load,
    open_tensors,
    save,
    trained_channels,
    trained_size,
)
from launch.errors import InputError
from launch.files import is_local, write_json
from launch.runtime.atomic_folder import atomic_folder, check_target
from launch.runtime.checkpoints import checkpoint
from launch.runtime.run import CLASSIFIER, Run


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

    Args:
        source: see `loading.open_tensors`.
        target: a folder that is empty or not there.
        layout: that the files have to be of.
        model: see `configs.build`.
        pixels: see `layers.PIXELS`; None is what stands beside the weights.
        size: of images; None is the weights'.
        num_classes: of a new head; None keeps the weights' head.

    Raises:
        InputError: anything is wrong with the files; nothing is written.
    """
    place = epath.Path(target)
    check_target(place)
    tensors = open_tensors(source)
    found = find_layout(tensors, source)
    # timm's ResNets have torchvision's names.
    if found != layout and (found, layout) != ("torchvision", "timm"):
        raise InputError(f"{source} holds weights of {found}: say --from={found}:{source}")
    overrides = {"pixels": pixels, "num_classes": num_classes}
    given = {name: value for name, value in overrides.items() if value is not None}
    network, of_weights = build(source, model, **given)
    size = size or of_weights
    image_shape = (size, size, trained_channels(tensors))
    variables = load(source, network, image_shape, new_head=num_classes is not None)
    config = {
        "model": describe(network),
        "seeds": 1,
        "total_steps": 0,
        "evaluation": {"size": size, "crop_ratio": crop_ratio(source)},
        "imported": {"from": source, "layout": layout},
    }
    with atomic_folder(place) as folder:
        checkpoint.save_inference(folder / "seed_0", variables)
        write_json(folder / "config.json", config)


def export_run(source: str, target: str, layout: str, seed: int = 0) -> None:
    """Writes a seed of a run in another library's layout.

    Args:
        source: a run directory of classifiers.train, or an import.
        target: a local folder that is empty or not there.
        layout: one of `layouts.LAYOUTS`.
        seed: which.

    Raises:
        InputError: there is no such seed, it is unfinished, or the layout has no such model.
    """
    if not is_local(target):
        raise InputError(f"{target}: safetensors are written to local folders; name one with --to")
    check_target(epath.Path(target))
    run = Run.open(source)
    config = run.config
    if run.kind != CLASSIFIER:
        raise InputError(f"{source} is no run of classifiers.train: name one with --from")
    if seed >= config.seeds:
        raise InputError(f"--seed={seed}: {source} has the seeds 0 to {config.seeds - 1}")
    run = run.seed(seed)
    shapes = run.shapes()
    num_classes = shapes["params"]["head"]["bias"].shape[0]
    model = from_config.make_model(config.model, num_classes)
    entries(model, shapes, layout)  # A layout without such a model is told before all is read.
    variables = run.variables(shapes)
    flat = flax.traverse_util.flatten_dict(shapes, sep=".")
    size = trained_size(flat, model) or _evaluated_size(config)
    image_shape = (size, size, trained_channels(flat))
    with atomic_folder(epath.Path(target)) as found:
        save(Path(found), variables, model, image_shape, layout)
        write_configs(Path(found), model, image_shape, layout)


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


def _evaluated_size(config: ml_collections.ConfigDict) -> int:
    for name in ("evaluation", "augment"):
        if size := (config.get(name) or {}).get("size"):
            return size
    return 224
