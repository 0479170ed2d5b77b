"""Converts single-file checkpoints in Stable Diffusion's original layout to diffusers'."""

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from imagen_ft.weights.borrowing import lender, small_files
from imagen_ft.weights.importing import MODEL_INDEX, check_schedulers, import_weights
from imagen_ft.weights.latent_parts import SCHEDULE
from imagen_ft.weights.original_configs import (
    autoencoder_config,
    clip_config,
    open_clip_config,
    unet_config,
)
from imagen_ft.weights.original_names import (
    OPEN_CLIP_RULES,
    Origin,
    autoencoder_rules,
    origin_of,
    unet_rules,
)
from imagen_ft.weights.pipeline_parts import PARTS
from imagen_ft.weights.tensor_rules import layout_of
from launch.errors import InputError
from launch.files import parse_object, temporary_folder, write_atomic, write_json
from launch.runtime.checkpoints.safetensors_io import Tensor, open_file, write_model
from launch.runtime.checkpoints.tensor_mapping import Rules, tensor_mappings

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# Prefixes of the parts' tensors. The text encoder of 1.x is OpenAI's, of 2.x open_clip's; XL has
# both; the refiner has only the latter, in another place.
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_TEXT_1, _TEXT_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
_TEXT_XL = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
_REFINER = "conditioner.embedders.0.model."
# Tensors that diffusers does not have: the schedule, the state of training, moving averages.
_BESIDES = re.compile(
    r"(alphas_cumprod|(sqrt|log|posterior)_)\w*|betas|global_step|logvar|lvlb_weights|scale_factor"
    r"|v_pred|ztsnr|(model_ema|denoiser)\..*"
)
# Marker tensors of some XL files: they predict v, or their schedule ends at an SNR of zero.
_PREDICTS_V = {"v_pred", "ztsnr"}
# Counters, masks and temperatures in text encoders, which no output depends on.
_IDLE = re.compile(r"text_model\.embeddings\.position_ids|logit_scale|attn_mask")
_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}


_SCHEDULER_FILE = "scheduler/scheduler_config.json"
# The schedule that all of them were trained with; the rest is for diffusers' samplers.
_SCHEDULE = dict(
    beta_end=0.012,
    beta_schedule=SCHEDULE,
    beta_start=0.00085,
    num_train_timesteps=1000,
    prediction_type="epsilon",
    steps_offset=1,
    timestep_spacing="leading",
)
# What 1.x's and XL's repositories in diffusers' layout add, in this order.
_SCHEDULERS: tuple[dict[str, Any], ...] = (
    dict(_class_name="PNDMScheduler", set_alpha_to_one=False, skip_prk_steps=True),
    dict(_class_name="EulerDiscreteScheduler", use_karras_sigmas=False),
)
# Returns a tensor by diffusers' name, in the type that the file has.
_Read = Callable[[str, np.dtype], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _FilePart:
    prefix: str  # of its tensors
    config: dict[str, Any]  # content of diffusers' config.json
    rules: Rules  # from diffusers' names to those behind the prefix
    idle: re.Pattern = _IDLE  # names behind the prefix to ignore


def import_file(
    source: str,
    target: epath.PathLike,
    parts: Sequence[str] = (),
    pipeline: str | None = None,
) -> bool:
    """As `import_weights`, from one safetensors file of Stable Diffusion 1.x, 2.x or XL base.

    Names and shapes tell which it is. `pipeline` is a folder, import or repository with what the
    file lacks: tokenizers and the scheduler. Without it there are no tokenizers, and the scheduler
    is 1.x's or XL's. Raises `InputError` also if the file is something else, or a 2.x without a
    pipeline that says what the weights predict.
    """
    # The weights are unpacked first: for a while they take twice their size on disk.
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        unpack(Path(source), Path(folder), pipeline)
        return import_weights(folder, target, parts, origin=source)


def unpack(path: Path, folder: Path, pipeline: str | None = None) -> None:
    """Writes a single file as a pipeline in diffusers' layout into an empty folder.

    `pipeline` and errors are those of `import_file`.
    """
    # 1. Open the file; a pickle is never opened.
    if path.suffix in _PICKLES:
        raise InputError(
            f"{path} is a pickle, which could run any code when it is read; convert it to "
            "safetensors and name that file"
        )
    tensors = open_file(path, integers=True)
    # 2. Find its parts, and plan where each of diffusers' tensors comes from.
    parts = _parts(path, tensors)
    readers = {name: _plan(path, tensors, name, part) for name, part in parts.items()}
    # 3. Take or make the small files.
    small = _small_files(path, parts, pipeline, tensors)
    if "unet" in parts:
        _add_sizes(parts, small)
    # 4. Write, tensor by tensor.
    for name, (shapes, read) in readers.items():
        (folder / name).mkdir()
        write_json(folder / name / "config.json", parts[name].config)
        write_model(folder / name, PARTS[name].stem, None, shapes, read)
    for file, data in small.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_atomic(folder / file, data)
    check_schedulers(folder)


def _parts(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, _FilePart]:
    def shapes(prefix: str) -> dict[str, tuple[int, ...]]:
        found = {
            n.removeprefix(prefix): t.shape for n, t in tensors.items() if n.startswith(prefix)
        }
        return {name: shape for name, shape in found.items() if not _IDLE.fullmatch(name)}

    # 1. A part is there if a tensor has its prefix; its config follows from the shapes.
    found: dict[str, _FilePart] = {}
    prefix = ""
    try:
        is_xl = f"{_UNET}label_emb.0.0.weight" in tensors
        for prefix, name, is_pooled in (
            (_TEXT_1, "text_encoder", None),
            (_TEXT_2, "text_encoder", False),
            (_TEXT_XL[0], "text_encoder", None),
            (_TEXT_XL[1], "text_encoder_2", True),
        ):
            if own := shapes(prefix):
                found[name] = _text_encoder(prefix, own, is_pooled)
        # The scale is not in the file: it is a constant of each kind's published config.
        prefix = _VAE
        if own := shapes(prefix):
            config = autoencoder_config(own, 0.13025 if is_xl else 0.18215)
            rules = autoencoder_rules(len(config["block_out_channels"]))
            found["vae"] = _FilePart(_VAE, config, rules)
        prefix = _UNET
        if own := shapes(prefix):
            second = found["text_encoder_2"].config if "text_encoder_2" in found else {}
            found["unet"] = _unet(own, second.get("projection_dim", 0))
    except KeyError as error:
        raise InputError(
            f"{path}: the tensor {prefix}{error.args[0]} of Stable Diffusion is missing; the file "
            "is incomplete or of another model, download it again"
        ) from None
    # 2. Unknown tensors mean another model, perhaps with the same names for some of its parts.
    known = tuple(part.prefix for part in found.values())
    strange = [n for n in tensors if not n.startswith(known) and not _BESIDES.fullmatch(n)]
    if not found or strange or any(name.startswith(_REFINER) for name in tensors):
        example = min(strange, default=min(tensors, default="nothing"))
        raise InputError(
            f"{path} is not a checkpoint of Stable Diffusion 1.x, 2.x or XL base in the original "
            f"layout: it has {example}; for diffusers' layout give the pipeline's folder"
        )
    return found


def _text_encoder(
    prefix: str, shapes: dict[str, tuple[int, ...]], is_pooled: bool | None
) -> _FilePart:
    if is_pooled is None:
        return _FilePart(prefix, clip_config(shapes), ())
    config = open_clip_config(shapes, is_pooled)
    if is_pooled:
        return _FilePart(prefix, config, OPEN_CLIP_RULES)
    # Ignore the last layer, and the projection of its output.
    last = rf"transformer\.resblocks\.{config['num_hidden_layers']}\..*|text_projection"
    return _FilePart(prefix, config, OPEN_CLIP_RULES, re.compile(f"{_IDLE.pattern}|{last}"))


def _unet(shapes: dict[str, tuple[int, ...]], pooled_width: int) -> _FilePart:
    config = unet_config(shapes, pooled_width)
    layers = config["layers_per_block"]
    attention = [block.startswith("CrossAttn") for block in config["down_block_types"]]
    return _FilePart(_UNET, config, unet_rules(layers, attention))


def _plan(
    path: Path, tensors: Mapping[str, Tensor], name: str, part: _FilePart
) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], _Read]:
    # Returns shape and type of diffusers' tensors by name, and a function that reads one.
    # 1. Build the model that the config describes, and find each of its tensors in the file.
    model, own_shapes = PARTS[name].build(part.config, f"{path}: {name}")
    mappings = tensor_mappings(own_shapes, layout_of(model).rules)
    origins = {theirs: origin_of(theirs, part.rules) for theirs in mappings}
    planned = {}
    for theirs, mapping in mappings.items():
        original, shape = part.prefix + origins[theirs].name, mapping.file_shape
        if original not in tensors:
            raise InputError(
                f"{path}: the tensor {original} of Stable Diffusion is missing; the file is "
                "incomplete or of another model, download it again"
            )
        stored = _stored_shape(shape, origins[theirs])
        found = tensors[original].shape
        # The original auto-encoder's attention uses 1x1 convolutions in place of dense layers.
        if found not in (stored, (*stored, 1, 1)):
            raise InputError(
                f"{path}: the tensor {original} must have the shape {stored} of Stable Diffusion, "
                f"got {found}; use a file of that model"
            )
        planned[theirs] = (shape, tensors[original].dtype)
    # 2. Nothing behind the prefix may be left over.
    used = {part.prefix + origin.name for origin in origins.values()}
    for original in sorted(set(tensors) - used):
        own = original.removeprefix(part.prefix)
        if original.startswith(part.prefix) and not part.idle.fullmatch(own):
            raise InputError(
                f"{path}: the tensor {original} is not part of a {name} of Stable Diffusion; use a "
                "file of that model"
            )

    def read(theirs: str, dtype: np.dtype) -> np.ndarray:
        # Undo the fusing of q, k and v, the transposition, and the 1x1 windows.
        origin, shape = origins[theirs], planned[theirs][0]
        array = tensors[part.prefix + origin.name].view()
        if origin.third is not None:
            array = np.split(array, 3)[origin.third]
        return (array.T if origin.is_transposed else array).reshape(shape)

    return planned, read


def _stored_shape(shape: tuple[int, ...], origin: Origin) -> tuple[int, ...]:
    # The shape that a tensor must have in the original file.
    if origin.third is not None:
        return (3 * shape[0], *shape[1:])
    return shape[::-1] if origin.is_transposed else shape


def _small_files(
    path: Path, parts: Mapping[str, _FilePart], pipeline: str | None, names: Collection[str]
) -> dict[str, bytes]:
    # 1. Which kind of pipeline the U-Net belongs to.
    unet = parts["unet"].config if "unet" in parts else {}
    is_xl = "addition_embed_type" in unet
    kind = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    # 2. Take the files of a pipeline of that kind.
    if pipeline is not None:
        small = small_files([lender(pipeline)])
        index = parse_object(small.get(MODEL_INDEX, b"{}"), MODEL_INDEX)
        if unet and (found := index.get("_class_name")) != kind:
            raise InputError(
                f"--pipeline={pipeline} must be a {kind}, like {path}, got {found}; use the "
                "pipeline of these weights"
            )
        return small
    # 3. Make those of 1.x and XL base, which predict eps. 2.x exists for eps and for v, and so do
    # fine-tuned XLs, some of which say so.
    is_2x = bool(unet) and unet["use_linear_projection"] and not is_xl
    if is_2x or _PREDICTS_V & set(names):
        raise InputError(
            f"{path}: the file does not say whether the weights predict eps or v; set --pipeline "
            "to a folder or repository whose scheduler does"
        )
    classes: dict[str, Any] = {name: list(_CLASSES[name]) for name in parts}
    classes["scheduler"] = ["diffusers", _SCHEDULERS[is_xl]["_class_name"]]
    return {
        _SCHEDULER_FILE: _json({**_SCHEDULE, **_SCHEDULERS[is_xl]}),
        MODEL_INDEX: _json({"_class_name": kind, **classes}),
    }


def _add_sizes(parts: Mapping[str, _FilePart], small: Mapping[str, bytes]) -> None:
    # Sizes of the last stage of training, in latents: 512 px (64), 768 px (96, 2.x that predicts v)
    # or, for XL, 1,024 px (128).
    scheduler = parse_object(small.get(_SCHEDULER_FILE, b"{}"), _SCHEDULER_FILE)
    is_xl = "addition_embed_type" in parts["unet"].config
    size = 96 if scheduler.get("prediction_type") == "v_prediction" else 64
    parts["unet"].config["sample_size"] = 128 if is_xl else size
    if "vae" in parts:
        parts["vae"].config["sample_size"] = 8 * parts["unet"].config["sample_size"]


def _json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=2) + "\n").encode()
