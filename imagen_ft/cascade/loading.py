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

# Of a stage's dtype, see `with_dtypes`.
AUTO = "auto"
_OF_PROMPTS = ("text.null", "text.template")
# How to compute, not what: may differ in sampling.
_HOW = (
    "stage.unet.dtype",
    "stage.unet.remat",
    # Where the auto-encoder is: of what it is made a digest says.
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

    Of a run the newest weights are taken, or with `best` those that evaluated best; of its moving
    averages 'main', or the one that `ema` names. DeepFloyd IF's own, an import or a folder in
    diffusers' layout, may be a repository of the Hub with 'deepfloyd:' before its name, and have a
    `variant`. Where a stage has a `guide`, that is loaded in the same way: another `run`, or the
    stage's own with another `ema` or `best`. Adapters in a file of diffusers that `lora` names are
    merged into the weights.

    Args:
        config: of the task.
        encoder: of the prompts.
        mesh: where the cascade is to be; None is one device.
        base: see `make_stages`.

    Returns:
        The stages in order of size, the variables of each, and digests of these.

    Raises:
        InputError: a run is missing, unfinished or damaged, was made with another network, text
            encoder or list of classes than the config says, or the stages do not fit together.
    """
    stages = make_stages(config, base)
    for name, entry in config.stages.items():
        for field, part in (("", entry), (".guide", entry.get("guide") or {})):
            check_adapters(f"config.stages.{name}{field}.lora", part.get("lora") or "")
    variables, digests = [], []
    for name, stage in stages.items():
        entry, field = config.stages[name], f"config.stages.{name}"
        loaded, digest = _load(entry, stage.denoiser, field, config, encoder, mesh)
        if stage.guide is not None:
            guide = ml_collections.ConfigDict({"run": entry.run, "stage": entry.stage})
            guide.update(entry.guide)
            weaker, other = _load(guide, stage.guide, f"{field}.guide", config, encoder, mesh)
            loaded, digest = {**loaded, GUIDE: weaker}, json_digest([digest, other])
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
    """Variables of one network of a cascade, of a stage or its guide, and their digest."""
    run = open_run(entry.run)
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
    if not entry.get("lora"):
        return loaded, digest
    adapted = with_adapters(entry.lora, denoiser, loaded, mesh)
    return adapted, json_digest([digest, sha256(entry.lora)])


def lacking_in_cascade(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of a cascade that a config lacks."""
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
    """A config in which a dtype of 'auto' is the half precision that is fast here.

    What is drawn notes this config, and so the type that was used. Training has no 'auto': in
    float16 small gradients are lost.
    """
    half = half_dtype(jax.local_devices()[0])
    networks = [
        entry.get("stage", {}).get(network) or {}
        for entry in config.get("stages", {}).values()
        for network in ("unet", "autoencoder")
    ]
    if not any(section.get("dtype") == AUTO for section in [*networks, config.get("text", {})]):
        return config
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
    """All devices of this job, as `config.mesh` says; None where there is but one."""
    return make_mesh(config.get("mesh", {"data": -1})) if jax.device_count() > 1 else None


def lacking_in_mesh(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `mesh_of` that a config lacks."""
    return below("mesh", config.get("mesh") or {}, {"data": -1, "fsdp": 1, "tensor": 1})


def check_same_model(
    run: Run, stage: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> None:
    """Compares what a run was trained with, with what we take it for.

    Args:
        run: of imagen_ft.finetune.
        stage: the network we expect.
        config: its `text` and `class_names` are what we expect.

    Raises:
        InputError: they differ.
    """
    expected = {"stage": stage, "text": config.text, "class_names": config.class_names}
    trained = {field: run.config[field] for field in expected}
    # Of states of T5, cached or made here, a digest says whose they are: see `check_same_text`.
    by_digest = "model" not in trained["text"] and "model" not in config.text
    for field, (before, now) in differences(plain(trained), plain(expected)).items():
        of_encoder = field.startswith("text.") and field not in _OF_PROMPTS
        if field not in _HOW and not (by_digest and of_encoder):
            raise InputError(
                f"{run.path}: {field} must be {now}, as in the config, got {before}; name "
                "another run"
            )


def check_same_text(run: Run, encoder: TextEncoder) -> None:
    """Compares the text states that a run was trained with, with ours.

    Args:
        run: of imagen_ft.finetune.
        encoder: ours.

    Raises:
        InputError: they are of another encoder.
    """
    trained_with = run.inputs.get("text", "")
    if trained_with != encoder.digest:
        raise InputError(
            f"{run.path} was trained with another text encoder than config.text; name the "
            "cache that it was trained with"
        )


def text_shape(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """[length, d] of a prompt's states; nothing is loaded where the config says it."""
    return text_shapes(config.text)[0]


def parameter_shapes(config: ml_collections.ConfigDict, base: bool = True) -> dict[str, Any]:
    """Shapes of the parameters of every stage and of the text encoder; nothing is loaded.

    Args:
        config: of a task.
        base: whether the first stage has to begin with noise.
    """
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
