"""From configs and run directories to the stages of a cascade."""

from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from imagen_ft import weights
from imagen_ft.cascade.autoencoder import check_same_autoencoder, load_autoencoder
from imagen_ft.cascade.changes import changed
from imagen_ft.cascade.stage_weights import (
    check_adapters,
    digest_of,
    load_public,
    open_run,
    public_path,
    variables_of,
    with_adapters,
)
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.from_config import (
    lacking_in_denoiser,
    lacking_in_stage,
    make_denoiser,
    make_stages,
)
from imagen_ft.diffusion.stage import AUTOENCODER, GUIDE, Stage
from imagen_ft.text.encoders import TextEncoder, lacking_in_text, text_shapes
from input_pipeline import class_names
from launch.errors import InputError
from launch.files import differences, json_digest, sha256
from launch.runtime.config import plain
from launch.runtime.devices.hardware import half_dtype
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.ema import MAIN
from launch.runtime.optional_fields import Defaults, below, unset
from launch.runtime.run import Run
from launch.runtime.types import Variables

# A network's dtype, see `with_dtypes`.
AUTO = "auto"
_OF_PROMPTS = ("text.null", "text.template")
# Fields that may differ between training and sampling: how to compute, not what.
_HOW = (
    "stage.unet.dtype",
    "stage.unet.remat",
    # Where the auto-encoder's files are; its checksum says whether they are the same.
    "stage.autoencoder.weights",
    "stage.autoencoder.variant",
    "stage.autoencoder.dtype",
    "stage.autoencoder.remat",
)


def load_stages(
    config: ml_collections.ConfigDict,
    encoder: TextEncoder,
    mesh: Mesh | None = None,
    base: bool = True,
) -> tuple[tuple[Stage, ...], tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Loads the stages that `config.stages` names, each from its run directory (`run`).

    From a run the newest weights are loaded, or with `best` those that evaluated best; of its
    moving averages 'main', or the one that `ema` names. Public weights (DeepFloyd IF's, an import
    or a folder in diffusers' layout) may be a Hub repository with 'deepfloyd:' before its name, and
    have a `variant`. A stage's `guide` is loaded in the same way: another `run`, or the stage's own
    with another `ema` or `best`. `lora` names a diffusers file of adapters to merge. Returns the
    stages ordered by size, the variables of each, and their checksums.

    Raises:
        InputError: a run is missing, unfinished or damaged, was made with another network, text
            encoder or list of classes than the config says, or the stages do not fit together.
    """
    # 1. Everything that can be checked without loading weights.
    stages = make_stages(config, base)
    for name, entry in config.stages.items():
        for field, part in (("", entry), (".guide", entry.get("guide") or {})):
            check_adapters(f"config.stages.{name}{field}.lora", part.get("lora") or "")
    # 2. The weights, stage by stage.
    variables, digests = [], []
    for name, stage in stages.items():
        entry, field = config.stages[name], f"config.stages.{name}"
        # 2a. The network.
        loaded, digest = _load(entry, stage.denoiser, field, config, encoder, mesh)
        # 2b. The network that guidance leads away from; by default the same run.
        if stage.guide is not None:
            guide = ml_collections.ConfigDict({"run": entry.run, "stage": entry.stage})
            guide.update(entry.guide)
            weaker, other = _load(guide, stage.guide, f"{field}.guide", config, encoder, mesh)
            loaded, digest = {**loaded, GUIDE: weaker}, json_digest([digest, other])
        # 2c. The auto-encoder, which must be the one that a run was trained with.
        if stage.denoiser.autoencoder is not None:
            given = entry.stage, stage.denoiser.autoencoder, entry.run, field, mesh
            decoder, other = load_autoencoder(*given, entry.get("variant"))
            if run := open_run(entry.run):
                check_same_autoencoder(run, other)
            loaded, digest = {**loaded, AUTOENCODER: decoder}, json_digest([digest, other])
        variables.append(loaded)
        digests.append(digest)
    return tuple(stages.values()), tuple(variables), tuple(digests)


def _load(
    entry: ml_collections.ConfigDict,
    denoiser: Denoiser,
    field: str,
    config: ml_collections.ConfigDict,
    encoder: TextEncoder,
    mesh: Mesh | None,
) -> tuple[Variables, str]:
    """Variables of one network, of a stage or its guide, and their checksum."""
    run = open_run(entry.run)
    # 1. A run of ours, or public weights.
    if run is not None:
        check_same_model(run, entry.stage, config)
        check_same_text(run, encoder)
        which = dict(ema=entry.get("ema", MAIN), best=entry.get("best", False))
        loaded = variables_of(run, denoiser, encoder.shape, mesh, **which)
        digest = digest_of(run, **which)
    else:
        path, variant = entry.run, entry.get("variant")
        loaded = load_public(path, denoiser, encoder.shape, field, mesh=mesh, variant=variant)
        digest = weights.digest(public_path(path), "unet", variant)
    # 2. Adapters; the checksum is of both.
    if not entry.get("lora"):
        return loaded, digest
    adapted = with_adapters(entry.lora, denoiser, loaded, mesh)
    return adapted, json_digest([digest, sha256(entry.lora)])


def lacking_in_cascade(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of a cascade that a config does not set."""
    own = {"negative_prompt": "", "class_names": class_names.MIXED}
    fields = {**below("", config, own), **lacking_in_text(config.text)}
    of_stage = {"ema": MAIN, "best": False, "variant": unset(str), "lora": ""}
    for name, entry in with_dtypes(config).stages.items():
        path, denoiser = f"stages.{name}", make_denoiser(entry.stage)
        fields |= below(path, entry, of_stage)
        guide = {"run": entry.get("run", ""), **of_stage}
        fields |= below(f"{path}.guide", entry.get("guide") or {}, guide)
        fields |= lacking_in_denoiser(f"{path}.stage", entry.stage)
        fields |= lacking_in_stage(path, entry, denoiser)
    return fields


def with_dtypes(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A config with the half precision that is fast here in place of each dtype 'auto'."""
    # What is drawn records the type that was used. Training has no 'auto': in float16 small
    # gradients are lost.
    half = half_dtype(jax.local_devices()[0])
    networks = [
        entry.get("stage", {}).get(network) or {}
        for entry in config.get("stages", {}).values()
        for network in ("unet", "autoencoder")
    ]
    if not any(section.get("dtype") == AUTO for section in [*networks, config.get("text", {})]):
        return config
    # A copy: the caller's config stays as it is.
    config = changed(config, {}, loading=True)
    networks = [
        section
        for entry in config.get("stages", {}).values()
        for section in (entry.stage.get("unet"), entry.stage.get("autoencoder"))
    ]
    for section in [*networks, config.get("text")]:
        if section and section.get("dtype") == AUTO:
            section.dtype = half
    return config


def mesh_of(config: ml_collections.ConfigDict) -> Mesh | None:
    """All devices of this job, arranged by `config.mesh`; None where there is only one."""
    return make_mesh(config.get("mesh", {"data": -1})) if jax.device_count() > 1 else None


def lacking_in_mesh(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `mesh_of` that a config does not set."""
    return below("mesh", config.get("mesh") or {}, {"data": -1, "fsdp": 1, "tensor": 1})


def check_same_model(
    run: Run, stage: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> None:
    """Raises InputError if a run was trained with another network, text or list of classes."""
    expected = {"stage": stage, "text": config.text, "class_names": config.class_names}
    trained = {field: run.config[field] for field in expected}
    # T5's states, cached or computed here, have a checksum that says whose they are: see
    # `check_same_text`. An encoder that is trained here ('model') is compared by its fields.
    by_digest = "model" not in trained["text"] and "model" not in config.text
    for field, (before, now) in differences(plain(trained), plain(expected)).items():
        of_encoder = field.startswith("text.") and field not in _OF_PROMPTS
        if field not in _HOW and not (by_digest and of_encoder):
            raise InputError(
                f"{run.path}: {field} must be {now}, as in the config, got {before}; choose "
                "another run"
            )


def check_same_text(run: Run, encoder: TextEncoder) -> None:
    """Raises InputError if a run was trained with the text states of another encoder."""
    trained_with = run.inputs.get("text", "")
    if trained_with != encoder.digest:
        raise InputError(
            f"{run.path} was trained with another text encoder than config.text; use the one that "
            "it was trained with"
        )


def text_shape(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """[length, d] of a prompt's states; nothing is loaded where the config says it."""
    return text_shapes(config.text)[0]


def parameter_shapes(config: ml_collections.ConfigDict, base: bool = True) -> dict[str, Any]:
    """Shapes of the parameters of every stage and of the text encoder; nothing is loaded."""
    shape, encoder = text_shapes(config.text)
    stages = make_stages(config, base=base)
    shapes = {}
    for name, stage in stages.items():
        shapes[name] = stage.denoiser.shapes(shape)["params"]
        if stage.guide is not None:
            shapes[f"{name}.guide"] = stage.guide.shapes(shape)["params"]
        if stage.denoiser.autoencoder is not None:
            shapes[f"{name}.autoencoder"] = stage.denoiser.autoencoder_shapes()["params"]
    return {**shapes, **encoder}
