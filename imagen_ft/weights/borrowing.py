"""What an export takes from another pipeline: small files, and parts that were not trained."""

import functools
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from etils import epath

from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.weights.importing import MODEL_INDEX, SMALL_PATTERNS, check_schedulers
from imagen_ft.weights.latent_parts import check_parts
from imagen_ft.weights.loading import open_checkpoint
from imagen_ft.weights.part_writers import VARIANT_DTYPES, Form, Writer, make_writer
from imagen_ft.weights.pipeline_parts import (
    FILES,
    MANIFEST,
    PARTS,
    SMALL_PARTS,
    NoSuchPart,
    Part,
    PartLocation,
    locate,
    open_part,
)
from imagen_ft.weights.tensor_rules import layout_of
from launch.errors import InputError
from launch.files import parse_object
from launch.runtime.checkpoints import hub
from launch.runtime.checkpoints.safetensors_io import Weights
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings


def lender(pipeline: str) -> epath.Path:
    """The folder of a pipeline's small files; `InputError` if there is no such pipeline."""
    root = epath.Path(pipeline)
    if not root.exists():
        locate(pipeline, "scheduler")  # for its error messages about the name
        root = epath.Path(hub.fetch(pipeline, SMALL_PATTERNS))
    return root / "source" if (root / MANIFEST).exists() else root


def borrow_parts(
    pipeline: str, unet: PartLocation, form: Form, owned: Collection[str] = ()
) -> dict[str, Writer]:
    """Writers of the parts that the U-Net of an import or run needs from a pipeline to draw.

    Skips parts in `owned`, and those that the pipeline lacks. Weights that do not exist in the
    wanted `form` are copied in the one that does. Raises `InputError` if a part is damaged or was
    made for another U-Net.
    """
    # 1. Find the parts that this kind of U-Net needs; IF's works in pixels and needs no vae.
    model, shapes = open_checkpoint(PARTS["unet"], unet)
    names = ["text_encoder"]
    if isinstance(model, LatentUNet):
        names += ["vae", "text_encoder_2"] if model.size_embedding_dim else ["vae"]
    needed = [name for name in names if name not in owned]
    lent = {name: part for name in needed if (part := _lent(pipeline, PARTS[name], form))}
    # 2. Check that they fit the U-Net before anything is written.
    if isinstance(model, LatentUNet):
        mappings = tensor_mappings(shapes, layout_of(model).rules)
        tensors = {name: mapping.file_shape for name, mapping in mappings.items()}
        models = {name: part for name, (part, _) in lent.items()}
        check_parts({"unet": model, **models}, tensors, f"{unet.folder} and {pipeline}")
    elif lent:
        encoder, width = lent["text_encoder"][0], shapes["encoder_hid_proj"]["kernel"].shape[0]
        own = getattr(encoder, "d_model", None)
        if own != width:
            raise InputError(
                f"the text encoder of {pipeline} must make states {width} wide, as {unet.folder} "
                f"was trained with, got {own}; use the pipeline that has its encoder"
            )
    return {name: write for name, (_, write) in lent.items()}


def _lent(pipeline: str, part: Part, form: Form) -> tuple[Any, Writer] | None:
    # A part's model and its writer; None if the pipeline lacks it: diffusers' pipelines work
    # without text encoders. Tries the wanted variant first, and reports why that one failed.
    faults = []
    for variant in dict.fromkeys((form.variant, None, *VARIANT_DTYPES)):
        try:
            location = locate(pipeline, part.name, variant)
            if location.kind != FILES:
                model = open_checkpoint(part, location)[0]
                return model, make_writer(part, location, Form(None, None))
            model, _, weights = open_part(location.folder, part, variant)
        except NoSuchPart:
            return None
        except InputError as error:
            faults.append(error)
            continue
        return model, functools.partial(_copy, weights)
    raise faults[0]


def _copy(weights: Weights, folder: Path) -> None:
    for name in ("config.json", weights.index, *weights.files):
        if name:
            shutil.copyfile(weights.folder / name, folder / name)


def small_files(lenders: list[epath.Path]) -> dict[str, bytes]:
    """Contents of a pipeline's small files by path; each folder from the first lender that has it.

    Raises `InputError` if a scheduler is not implemented.
    """
    contents: dict[str, bytes] = {}
    for root in lenders:
        lent = {name.partition("/")[0] for name in contents}
        if MODEL_INDEX not in lent and (root / MODEL_INDEX).exists():
            contents[MODEL_INDEX] = (root / MODEL_INDEX).read_bytes()
        for part in SMALL_PARTS:
            if part not in lent and (root / part).exists():
                for path in sorted((root / part).iterdir()):
                    if not path.is_dir():
                        contents[f"{part}/{path.name}"] = path.read_bytes()
        check_schedulers(root)
    return contents


def without_missing(index: bytes, parts: set[str]) -> bytes:
    """`model_index.json` with null for every component not in `parts` (the safety checker)."""
    table = parse_object(index, MODEL_INDEX)
    components = {n for n, value in table.items() if isinstance(value, list) and any(value[:1])}
    if components <= parts:
        return index  # byte for byte
    table.update({name: [None, None] for name in components - parts})
    return (json.dumps(table, indent=2) + "\n").encode()
