"""Single-file checkpoints of Stable Diffusion's original layout, to folders of diffusers'."""

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
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
# Its parts' tensors begin so: OpenAI's encoder or open_clip's.
_TEXT_1, _TEXT_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
_TEXT_XL = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
_REFINER = "conditioner.embedders.0.model."
# Numbers of the schedule and of training, moving averages: nothing that diffusers has.
_BESIDES = re.compile(
    r"(alphas_cumprod|(sqrt|log|posterior)_)\w*|betas|global_step|logvar|lvlb_weights|scale_factor"
    r"|v_pred|ztsnr|(model_ema|denoiser)\..*"
)
_PREDICTS_V = {"v_pred", "ztsnr"}
# Counters, masks and temperatures in the text encoders, which compute nothing.
_IDLE = re.compile(r"text_model\.embeddings\.position_ids|logit_scale|attn_mask")
_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}


_SCHEDULER_FILE = "scheduler/scheduler_config.json"
_SCHEDULE = dict(
    beta_end=0.012,
    beta_schedule=SCHEDULE,
    beta_start=0.00085,
    num_train_timesteps=1000,
    prediction_type="epsilon",
    steps_offset=1,
    timestep_spacing="leading",
)
# Of 1.x and of XL, as their repositories of diffusers have them.
_SCHEDULERS: tuple[dict[str, Any], ...] = (
    dict(_class_name="PNDMScheduler", set_alpha_to_one=False, skip_prk_steps=True),
    dict(_class_name="EulerDiscreteScheduler", use_karras_sigmas=False),
)
# Gives a tensor by diffusers' name, as the type that is asked for.
_Read = Callable[[str, np.dtype], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _FilePart:
    """A part of a pipeline, in a file.

    Attributes:
        prefix: of its tensors.
        config: what diffusers' `config.json` says of it.
        rules: from diffusers' names to those behind the prefix.
        idle: names behind the prefix that are passed over.
    """

    prefix: str
    config: dict[str, Any]
    rules: Rules
    idle: re.Pattern = _IDLE


def import_file(
    source: str,
    target: epath.PathLike,
    parts: Sequence[str] = (),
    pipeline: str | None = None,
) -> bool:
    """Imports a single file, see `import_weights`; for a while the disk has it twice.

    Args:
        source: a safetensors file of Stable Diffusion 1.x, 2.x or XL base: what is in it is told by
            names and shapes.
        target: as for `import_weights`.
        parts: as for `import_weights`.
        pipeline: a folder, import or repository with what a file has not: tokenizers and the
            scheduler. Without it there are no tokenizers, and the scheduler is 1.x's or XL's.

    Returns:
        As `import_weights`.

    Raises:
        InputError: as `import_weights`; or it is no such file, or of 2.x and there is no pipeline
            that says what the weights predict.
    """
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        unpack(Path(source), Path(folder), pipeline)
        return import_weights(folder, target, parts, origin=source)


def unpack(path: Path, folder: Path, pipeline: str | None = None) -> None:
    """Writes a pipeline in diffusers' layout.

    Args:
        path: see `import_file`.
        folder: exists and is empty.
        pipeline: see `import_file`.

    Raises:
        InputError: see `import_file`.
    """
    if path.suffix in _PICKLES:
        raise InputError(
            f"{path} is a pickle, which could run any code when it is read; convert it to "
            "safetensors and name that file"
        )
    tensors = open_file(path, integers=True)
    parts = _parts(path, tensors)
    readers = {name: _plan(path, tensors, name, part) for name, part in parts.items()}
    small = _small_files(path, parts, pipeline, tensors)
    if "unet" in parts:
        _add_sizes(parts, small)
    for name, (shapes, read) in readers.items():
        (folder / name).mkdir()
        write_json(folder / name / "config.json", parts[name].config)
        write_model(folder / name, PARTS[name].stem, None, shapes, read)
    for file, data in small.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_atomic(folder / file, data)
    check_schedulers(folder)


def _parts(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, _FilePart]:
    """The parts that a file has."""

    def shapes(prefix: str) -> dict[str, tuple[int, ...]]:
        found = {
            n.removeprefix(prefix): t.shape for n, t in tensors.items() if n.startswith(prefix)
        }
        return {name: shape for name, shape in found.items() if not _IDLE.fullmatch(name)}

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
            f"{path}: the tensor {prefix}{error.args[0]} of Stable Diffusion is missing; "
            "the file is of another model or incomplete"
        ) from None
    known = tuple(part.prefix for part in found.values())
    strange = [n for n in tensors if not n.startswith(known) and not _BESIDES.fullmatch(n)]
    if not found or strange or any(name.startswith(_REFINER) for name in tensors):
        example = min(strange, default=min(tensors, default="nothing"))
        raise InputError(
            f"{path} is not a checkpoint of Stable Diffusion 1.x, 2.x or XL base in the "
            f"original layout: it has {example}; for diffusers' layout name the pipeline's "
            "folder"
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
    # The last layer, and the projection of what it makes.
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
    """Shape and type of diffusers' tensors by name, and what reads one."""
    model, own_shapes = PARTS[name].build(part.config, f"{path}: {name}")
    mappings = tensor_mappings(own_shapes, layout_of(model).rules)
    origins = {theirs: origin_of(theirs, part.rules) for theirs in mappings}
    planned = {}
    for theirs, mapping in mappings.items():
        original, shape = part.prefix + origins[theirs].name, mapping.file_shape
        if original not in tensors:
            raise InputError(
                f"{path}: the tensor {original} of Stable Diffusion is missing; the file "
                "is of another model or incomplete"
            )
        stored = _stored_shape(shape, origins[theirs])
        found = tensors[original].shape
        # The auto-encoder's attention is of 1x1 convolutions there.
        if found not in (stored, (*stored, 1, 1)):
            raise InputError(
                f"{path}: the tensor {original} must have the shape {stored} of Stable "
                f"Diffusion, got {found}; the file is of another model"
            )
        planned[theirs] = (shape, tensors[original].dtype)
    used = {part.prefix + origin.name for origin in origins.values()}
    for original in sorted(set(tensors) - used):
        own = original.removeprefix(part.prefix)
        if original.startswith(part.prefix) and not part.idle.fullmatch(own):
            raise InputError(
                f"{path}: the tensor {original} is not part of a {name} of Stable "
                "Diffusion; the file is of another model"
            )

    def read(theirs: str, dtype: np.dtype) -> np.ndarray:
        origin, shape = origins[theirs], planned[theirs][0]
        array = tensors[part.prefix + origin.name].view()
        if origin.third is not None:
            array = np.split(array, 3)[origin.third]
        return (array.T if origin.is_transposed else array).reshape(shape)

    return planned, read


def _stored_shape(shape: tuple[int, ...], origin: Origin) -> tuple[int, ...]:
    if origin.third is not None:
        return (3 * shape[0], *shape[1:])
    return shape[::-1] if origin.is_transposed else shape


def _small_files(
    path: Path, parts: Mapping[str, _FilePart], pipeline: str | None, names: Collection[str]
) -> dict[str, bytes]:
    """What describes the pipeline, of another one or as 1.x and XL have it."""
    unet = parts["unet"].config if "unet" in parts else {}
    is_xl = "addition_embed_type" in unet
    kind = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    if pipeline is not None:
        small = small_files([lender(pipeline)])
        index = parse_object(small.get(MODEL_INDEX, b"{}"), MODEL_INDEX)
        if unet and (found := index.get("_class_name")) != kind:
            raise InputError(
                f"--pipeline={pipeline} must be a {kind}, as {path} is of one, got {found}; name "
                "the pipeline of these weights"
            )
        return small
    # Of 2.x there are weights of both kinds, and of XL some say that they are of the other.
    is_2x = bool(unet) and unet["use_linear_projection"] and not is_xl
    if is_2x or _PREDICTS_V & set(names):
        raise InputError(
            f"{path}: the file does not say whether the weights predict eps or v; name "
            "with --pipeline a folder or repository whose scheduler does"
        )
    classes: dict[str, Any] = {name: list(_CLASSES[name]) for name in parts}
    classes["scheduler"] = ["diffusers", _SCHEDULERS[is_xl]["_class_name"]]
    return {
        _SCHEDULER_FILE: _json({**_SCHEDULE, **_SCHEDULERS[is_xl]}),
        MODEL_INDEX: _json({"_class_name": kind, **classes}),
    }


def _add_sizes(parts: Mapping[str, _FilePart], small: Mapping[str, bytes]) -> None:
    """Says how large the images are that weights of this kind were trained with last."""
    scheduler = parse_object(small.get(_SCHEDULER_FILE, b"{}"), _SCHEDULER_FILE)
    is_xl = "addition_embed_type" in parts["unet"].config
    size = 96 if scheduler.get("prediction_type") == "v_prediction" else 64
    parts["unet"].config["sample_size"] = 128 if is_xl else size
    if "vae" in parts:
        parts["vae"].config["sample_size"] = 8 * parts["unet"].config["sample_size"]


def _json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=2) + "\n").encode()
