"""What one pipeline takes from another: small files, and the parts that are not trained."""

import functools
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from etils import epath

from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.weights import hub
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
from launch.runtime.checkpoints.safetensors_io import Weights
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings


def lender(pipeline: str) -> epath.Path:
    """The folder of a pipeline's small files.

    Raises:
        InputError: there is no such folder, import or repository.
    """
    root = epath.Path(pipeline)
    if not root.exists():
        locate(pipeline, "scheduler")  # says what is wrong with the name
        root = epath.Path(hub.fetch(pipeline, SMALL_PATTERNS))
    return root / "source" if (root / MANIFEST).exists() else root


def borrow_parts(
    pipeline: str, unet: PartLocation, form: Form, owned: Collection[str] = ()
) -> dict[str, Writer]:
    """Writers of what a U-Net needs of a pipeline to draw, but for those that it has not.

    Args:
        pipeline: a folder, an import or a repository.
        unet: an import or a run.
        form: how the weights are written; files of another form are taken where there are none.
        owned: parts that are not needed.

    Raises:
        InputError: a part is damaged, or made for another U-Net.
    """
    model, shapes = open_checkpoint(PARTS["unet"], unet)
    names = ["text_encoder"]
    if isinstance(model, LatentUNet):
        names += ["vae", "text_encoder_2"] if model.size_embedding_dim else ["vae"]
    needed = [name for name in names if name not in owned]
    lent = {name: part for name in needed if (part := _lent(pipeline, PARTS[name], form))}
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
                f"the text encoder of {pipeline} must make states {width} wide, as "
                f"{unet.folder} was trained with, got {own}; name the pipeline with its "
                "encoder"
            )
    return {name: write for name, (_, write) in lent.items()}


def _lent(pipeline: str, part: Part, form: Form) -> tuple[Any, Writer] | None:
    """A part's model and what writes it; pipelines of diffusers work without text encoders."""
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
    """The small files of a pipeline by name; each folder from the first that has it.

    Raises:
        InputError: a scheduler is not implemented.
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
    """The index of a pipeline, with null for what is not there (the safety checker)."""
    table = parse_object(index, MODEL_INDEX)
    components = {n for n, value in table.items() if isinstance(value, list) and any(value[:1])}
    if components <= parts:
        return index
    table.update({name: [None, None] for name in components - parts})
    return (json.dumps(table, indent=2) + "\n").encode()
