"""Exports imports and runs to diffusers' layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.weights.borrowing import borrow_parts, lender, small_files, without_missing
from imagen_ft.weights.importing import MODEL_INDEX
from imagen_ft.weights.loading import open_checkpoint
from imagen_ft.weights.lora_file import write_lora
from imagen_ft.weights.part_writers import VARIANT_DTYPES, Form, make_writer
from imagen_ft.weights.pipeline_parts import (
    MANIFEST,
    PARTS,
    RUN,
    Part,
    PartLocation,
    locate,
    manifest_parts,
)
from launch.errors import InputError
from launch.files import is_local, parse_object, write_atomic
from launch.runtime.atomic_folder import atomic_folder, check_target
from launch.runtime.run import Run


def export_weights(
    source: str,
    target: epath.PathLike,
    pipeline: str | None = None,
    variant: str | None = None,
    dtype: str | None = None,
) -> None:
    """Writes weights in diffusers' layout.

    An import is written byte for byte as it was, unless `variant` or `dtype` asks for another form.
    A run's U-Net gets a `config.json` made from its fields. A run with `config.lora` becomes one
    file of adapters.

    Args:
        source: an imported folder, or a run directory of imagen_ft.finetune.
        target: a local folder that is empty or does not exist.
        pipeline: a folder, import or repository with what `source` lacks: text encoders and their
            tokenizers, auto-encoder, schedulers, model_index.json. With them diffusers' pipelines
            load `target`.
        variant: 'fp16' or 'bf16': part of the files' names, and their type if `dtype` is None.
        dtype: 'float32', 'float16' or 'bfloat16'; a run's default is float32.

    Raises:
        InputError: something is wrong with the source, the pipeline or the target, or diffusers has
            no such model; nothing is written.
    """
    # 1. Check the arguments.
    if not is_local(target):
        raise InputError(f"--to must be a local folder for safetensors, got {target}; choose one")
    if variant not in (None, *VARIANT_DTYPES):
        raise InputError(f"--variant must be one of {', '.join(VARIANT_DTYPES)}, got {variant}")
    target = epath.Path(target)
    check_target(target)
    form = Form(variant, dtype)
    # 2. A run of adapters: they are all that is exported.
    locations = _locations(source)
    run = _adapted(locations)
    if run is not None:
        if pipeline:
            raise InputError(
                "--pipeline: a run with config.lora is exported as adapters only; leave it out"
            )
        with atomic_folder(target) as folder:
            write_lora(run, Path(folder), form.numbers)
        return
    # 3. Plan the parts: the source's own, then those borrowed from the pipeline.
    writers = {
        name: make_writer(PARTS[name], location, form) for name, location in locations.items()
    }
    lenders = [epath.Path(source) / "source"] + ([lender(pipeline)] if pipeline else [])
    if pipeline and "unet" in locations:
        writers |= borrow_parts(pipeline, locations["unet"], form, writers)
    elif pipeline and "text_encoder" not in writers:
        raise InputError(
            f"--pipeline={pipeline} needs a U-Net, which {source} does not have; leave it out"
        )
    # 4. Collect the small files, and adapt the index to the parts that there will be.
    small = small_files(lenders)
    index = small.pop(MODEL_INDEX, None)
    if index is not None:
        components = parse_object(index, MODEL_INDEX)
        index = without_missing(index, set(writers) | {name.partition("/")[0] for name in small})
        if "unet" in locations:
            _check_pipeline(PARTS["unet"], locations["unet"], components, pipeline or source)
    elif pipeline:
        raise InputError(f"--pipeline={pipeline} has no {MODEL_INDEX}; choose a pipeline's folder")
    # 5. Write everything.
    with atomic_folder(target) as folder:
        for name, write in writers.items():
            (folder / name).mkdir()
            write(Path(folder / name))
        for name, data in small.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_atomic(folder / name, data)
        if index is not None:
            write_atomic(folder / MODEL_INDEX, index)


def _adapted(locations: Mapping[str, PartLocation]) -> Run | None:
    # The run, if it holds adapters.
    if "unet" not in locations or locations["unet"].kind != RUN:
        return None
    run = Run.open(locations["unet"].folder)
    return run if run.config.get("lora") else None


def _locations(source: str) -> dict[str, PartLocation]:
    # An import exports all its parts; a run has a U-Net alone.
    root = epath.Path(source)
    if (root / MANIFEST).exists():
        return {name: locate(root, name) for name in manifest_parts(root)}
    if not root.exists():
        raise InputError(f"{source}: no such folder; choose an import or a run")
    location = locate(root, "unet")
    if location.kind != RUN:
        raise InputError(f"--from must be an import or a run, got {source}; choose one to export")
    return {"unet": location}


def _check_pipeline(
    part: Part, location: PartLocation, index: Mapping[str, Any], pipeline: str
) -> None:
    # Raises InputError unless the class of pipeline that the index names can draw with this U-Net.
    model, shapes = open_checkpoint(part, location)
    name = index.get("_class_name", "")
    if isinstance(model, LatentUNet) or name.startswith("StableDiffusion"):
        if not isinstance(model, LatentUNet) or not name.startswith("StableDiffusion"):
            raise InputError(
                f"{pipeline} must have a {type(model).__name__}, as {location.folder} has, got "
                f"{name}; set --pipeline to the pipeline of these weights"
            )
        return
    if ("SuperResolution" in name) != model.noise_level:
        kind = "a super-resolution model" if model.noise_level else "a base model"
        raise InputError(
            f"{pipeline} is of the class {name}, but {location.folder} is {kind}; set --pipeline "
            "to the pipeline of that stage"
        )
    # Super-resolution takes noisy and low-resolution images. IF's pipelines split the prediction
    # into eps and variance, and fail on one without the latter.
    channels = shapes["conv_in"]["kernel"].shape[2] // (2 if model.noise_level else 1)
    if model.out_channels != 2 * channels:
        raise InputError(
            f"{location.folder} must predict {2 * channels} channels, eps and variance, "
            f"for diffusers' {name}, got {model.out_channels}; export it without --pipeline"
        )
