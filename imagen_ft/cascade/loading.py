"""From configs and run directories to the stages of a cascade."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jax.sharding import Mesh

from imagen_ft import weights
from imagen_ft.cascade.changes import changed
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.from_config import (
    lacking_in_denoiser,
    lacking_in_stage,
    make_denoiser,
    make_stages,
)
from imagen_ft.diffusion.stage import Stage
from imagen_ft.text.encoders import TextEncoder, lacking_in_text, text_shapes
from launch.errors import InputError
from launch.files import differences
from launch.runtime.config import plain
from launch.runtime.devices.hardware import half_dtype
from launch.runtime.devices.mesh import make_mesh, with_shardings
from launch.runtime.ema import MAIN
from launch.runtime.optional_fields import Defaults, below, unset
from launch.runtime.run import STAGE, Run

# Of a stage's dtype, see `with_dtypes`.
AUTO = "auto"
PUBLIC = "deepfloyd:"
_OF_PROMPTS = ("text.null", "text.template")
# How to compute, not what: may differ in sampling.
_HOW = ("stage.unet.dtype", "stage.unet.remat")


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
    `variant`.

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
    variables, digests = [], []
    for name, stage in stages.items():
        entry = config.stages[name]
        run = open_run(entry.run)
        if run is not None:
            check_same_model(run, entry.stage, config)
            check_same_text(run, encoder)
            abstract = stage.denoiser.shapes(encoder.shape)
            abstract = abstract if mesh is None else with_shardings(mesh, abstract)
            which = dict(ema=entry.get("ema", MAIN), best=entry.get("best", False))
            variables.append(run.variables(abstract, **which))
            digests.append(run.digest(**which))
        else:
            field = f"config.stages.{name}"
            path, variant = entry.run.removeprefix(PUBLIC), entry.get("variant")
            options = dict(mesh=mesh, variant=variant)
            loaded = load_public(path, stage.denoiser, encoder.shape, field, **options)
            variables.append(loaded)
            digests.append(weights.digest(path, "unet", variant))
    return tuple(stages.values()), tuple(variables), tuple(digests)


def lacking_in_cascade(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of a cascade that a config lacks."""
    fields = {**below("", config, {"negative_prompt": ""}), **lacking_in_text(config.text)}
    own = {"ema": MAIN, "best": False, "variant": unset(str)}
    for name, entry in with_dtypes(config).stages.items():
        path, denoiser = f"stages.{name}", make_denoiser(entry.stage)
        fields |= below(path, entry, own)
        fields |= lacking_in_denoiser(f"{path}.stage", entry.stage)
        fields |= lacking_in_stage(path, entry, denoiser)
    return fields


def with_dtypes(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A config in which a dtype of 'auto' is the half precision that is fast here.

    What is drawn notes this config, and so the type that was used. Training has no 'auto': in
    float16 small gradients are lost.
    """
    stages = {
        name: {"dtype": half_dtype(jax.local_devices()[0])}
        for name, entry in config.get("stages", {}).items()
        if entry.get("stage", {}).get("unet", {}).get("dtype") == AUTO
    }
    text = config.get("text", {}).get("dtype") == AUTO
    if not stages and not text:
        return config
    config = changed(config, {"stages": stages}, loading=True)
    if text:
        config.text.dtype = half_dtype(jax.local_devices()[0])
    return config


def mesh_of(config: ml_collections.ConfigDict) -> Mesh | None:
    """All devices of this job, as `config.mesh` says; None where there is but one."""
    return make_mesh(config.get("mesh", {"data": -1})) if jax.device_count() > 1 else None


def lacking_in_mesh(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `mesh_of` that a config lacks."""
    return below("mesh", config.get("mesh") or {}, {"data": -1, "fsdp": 1, "tensor": 1})


def open_run(path: str) -> Run | None:
    """A run of imagen_ft.finetune; None where the path holds weights from elsewhere.

    'deepfloyd:' before a path or the name of a repository of the Hub says that it does.

    Raises:
        InputError: there is nothing.
    """
    if not path:
        raise InputError("run must name a run or weights, got ''; set it in the config")
    if path.startswith(PUBLIC):
        return None
    folder = epath.Path(path)
    if folder.exists() and not (folder / "config.json").exists():
        return None
    run = Run.open(folder)
    return run if run.kind == STAGE else None


def load_public(
    path: str,
    denoiser: Denoiser,
    text_shape: tuple[int, int],
    field: str,
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> dict[str, Any]:
    """Loads DeepFloyd IF's weights for a denoiser.

    Args:
        path: an import, or a folder in diffusers' layout.
        denoiser: whose network they have to be.
        text_shape: of one prompt's states.
        field: of the denoiser in the config, for messages.
        mesh: see `weights.load_unet`.
        variant: see `weights.load_unet`.

    Raises:
        InputError: they are another network's.
    """
    check_public(denoiser.prediction, path, field)
    model, params = weights.load_unet(path, mesh=mesh, variant=variant)
    network: Any = denoiser.model  # a dataclass, which its protocol cannot say
    ours = dataclasses.replace(network, dtype=model.dtype, remat=model.remat)
    if ours != model:
        names = [f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
        name = next(name for name in names if getattr(ours, name) != getattr(model, name))
        raise InputError(
            f"{field}: {name} is {getattr(ours, name)}, the weights of {path} have "
            f"{getattr(model, name)}"
        )
    shapes = jax.tree.map(lambda leaf: leaf.shape, denoiser.shapes(text_shape)["params"])
    if jax.tree.map(jnp.shape, params) != shapes:
        raise InputError(
            f"{field}: the weights of {path} take text states or images of another width than the "
            "config has"
        )
    return {"params": params}


def check_public(prediction: str, path: str, field: str) -> None:
    """DeepFloyd IF's networks predict eps; see `load_public`.

    Raises:
        InputError: the denoiser is to predict something else.
    """
    if prediction != "eps":
        raise InputError(
            f"{field}: prediction={prediction!r}, but the weights of {path} give 'eps'"
        )


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
                f"{run.path} was trained with {field} = {before}, the config has {now}: name "
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
            f"{run.path} was trained with the text states of another encoder than config.text has "
            "now: name the cache that it was trained with"
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
    shapes = {name: stage.denoiser.shapes(shape)["params"] for name, stage in stages.items()}
    return {**shapes, **encoder}
