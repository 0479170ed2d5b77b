"""From configs and run directories to denoisers, stages and cascades."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jax.sharding import Mesh

from imagen_ft import class_names, samplers, weights
from imagen_ft.cascade import Cascade
from imagen_ft.diffusion import PREDICTIONS
from imagen_ft.models import presets
from imagen_ft.models.unet import UNet
from imagen_ft.schedule import make_schedule, sampling_times
from imagen_ft.stage import UPSAMPLING, Denoiser, Network, Stage
from imagen_ft.text import TextEncoder, make_text_encoder
from input_pipeline.files import InputError, read_json
from launch.runtime import checkpoint
from launch.runtime.config import module_fields, plain
from launch.runtime.ema import MAIN
from launch.runtime.mesh import with_shardings
from launch.runtime.workdir import load_run_config


def make_denoiser(config: ml_collections.ConfigDict) -> Denoiser:
    """Builds a denoiser.

    Args:
        config: `size`, `low_size`, `channels`, `schedule`; `unet`: fields of `UNet`, or `preset`, a
            name of `models.presets`, and the fields that differ from it; `learned_variance`,
            `prediction` and `upsampling` where they are not those of `Denoiser`.

    Raises:
        InputError: unknown schedule, preset, prediction or upsampling, or sizes and levels that do
            not fit together.
    """
    if config.low_size and config.size % config.low_size:
        raise InputError(f"low_size={config.low_size} does not divide size={config.size}")
    upsampling = config.get("upsampling", "bilinear")
    if upsampling not in UPSAMPLING:
        raise InputError(f"upsampling={upsampling!r}: known are {', '.join(UPSAMPLING)}")
    prediction = config.get("prediction", "eps")
    if prediction not in PREDICTIONS:
        raise InputError(f"prediction={prediction!r}: known are {', '.join(PREDICTIONS)}")
    learned_variance = config.get("learned_variance", False)
    return Denoiser(
        model=_make_network(config, config.channels * (2 if learned_variance else 1)),
        schedule=make_schedule(config.schedule),
        size=config.size,
        low_size=config.low_size,
        channels=config.channels,
        upsampling=upsampling,
        learned_variance=learned_variance,
        prediction=prediction,
    )


def _make_network(config: ml_collections.ConfigDict, out_channels: int) -> Network:
    fields = module_fields(config.unet)
    own = dict(out_channels=out_channels, noise_level=config.low_size > 0)
    preset = fields.pop("preset", "")
    model = presets.make(preset, **fields | own) if preset else UNet(**fields | own)
    levels = len(model.block_out_channels)
    if isinstance(model, UNet) and len(model.attention) != levels:
        raise InputError(
            f"unet.attention has {len(model.attention)} values, block_out_channels {levels}"
        )
    halvings = levels - isinstance(model, UNet)
    if config.size % 2**halvings:
        raise InputError(f"size={config.size} cannot be halved {halvings} times, once a level")
    return model


def make_stage(config: ml_collections.ConfigDict, denoiser: Denoiser) -> Stage:
    """Builds a stage from the fields of `Stage`; those with defaults may be missing.

    Raises:
        InputError: an unknown sampler or spacing, steps that the schedule does not have, a level
            outside [0, 1], a negative weight.
    """
    level, weight = config.get("noise_augmentation", 0.0), config.guidance_weight
    interval = tuple(config.get("guidance_interval", (0.0, 1.0)))
    if not 0.0 <= level <= 1.0:
        raise InputError(f"noise_augmentation={level}: a level is in [0, 1]")
    if not 0.0 <= weight < float("inf"):
        raise InputError(f"guidance_weight={weight}: 1 is none, more is more; not below 0")
    if len(interval) != 2 or not 0.0 <= interval[0] < interval[1] <= 1.0:
        raise InputError(f"guidance_interval={interval}: from and to, in [0, 1], are needed")
    percentile, batch_size = config.threshold_percentile, config.get("batch_size", 0)
    maximum = config.get("threshold_maximum", float("inf"))
    if not 0.0 < percentile <= 100.0:
        raise InputError(
            f"threshold_percentile={percentile}: more than 0, at most 100, which clips"
        )
    if not maximum >= 1.0:
        raise InputError(f"threshold_maximum={maximum}: at least 1 is needed")
    if batch_size < 0:
        raise InputError(f"batch_size={batch_size}: images at a time; 0 leaves it to the cascade")
    sampler = samplers.make_sampler(config.sampler)
    sampling_times(denoiser.schedule, sampler.num_steps, sampler.spacing)
    if getattr(sampler, "logvar_coeff", 0.0) is None and not denoiser.learned_variance:
        raise InputError("sampler.logvar_coeff='learned': the stage has no learned_variance")
    return Stage(
        denoiser=denoiser,
        sampler=sampler,
        guidance_weight=weight,
        threshold_percentile=percentile,
        threshold_maximum=maximum,
        noise_augmentation=level,
        guidance_interval=interval,
        batch_size=batch_size,
    )


def make_stages(config: ml_collections.ConfigDict) -> dict[str, Stage]:
    """The stages of `config.stages` by name, in order of size; no weights are loaded.

    Raises:
        InputError: a stage starts from another size than the one before it makes, or there is none.
    """
    stages = {
        name: make_stage(entry, make_denoiser(entry.stage)) for name, entry in config.stages.items()
    }
    if not stages:
        raise InputError("config.stages is empty: name at least one run of imagen_ft.finetune")
    ordered = dict(sorted(stages.items(), key=lambda item: item[1].denoiser.size))
    size = 0
    for name, stage in ordered.items():
        if stage.denoiser.low_size != size:
            raise InputError(
                f"config.stages.{name} starts from {stage.denoiser.low_size} px, "
                f"the stage before it makes {size} px"
            )
        size = stage.denoiser.size
    return ordered


def load_cascade(config: ml_collections.ConfigDict, mesh: Mesh | None = None) -> Cascade:
    """Loads the stages that `config.stages` names, each from its run directory (`run`).

    Of a run the newest weights are taken, or with `best` those that evaluated best; of its moving
    averages 'main', or the one that `ema` names.

    Args:
        config: of the task.
        mesh: where the cascade is to be; None is one device.

    Raises:
        InputError: a run is missing, unfinished or damaged, was made with another network, text
            encoder or list of classes than the config says, or the stages do not fit together.
    """
    encoder = make_text_encoder(config.text)
    names = class_names.resolve(config.class_names)
    encoder.embed(names)  # A prompt that a cache lacks is found before any work.
    stages = make_stages(config)
    variables, digests = [], []
    for name, stage in stages.items():
        entry = config.stages[name]
        run = entry.run
        if is_run(run):
            check_same_model(run, entry.stage, config)
            check_same_text(run, encoder)
            abstract = stage.denoiser.shapes(encoder.shape)
            abstract = abstract if mesh is None else with_shardings(mesh, abstract)
            which = dict(ema=entry.get("ema", MAIN), best=entry.get("best", False))
            total_steps = load_run_config(run).total_steps
            variables.append(checkpoint.load_inference(run, abstract, total_steps, **which))
            digests.append(checkpoint.digest(run, **which))
        else:
            place = f"config.stages.{name}"
            variables.append(load_public(run, stage.denoiser, encoder.shape, place, mesh))
            digests.append(weights.digest(run, "unet"))
    return Cascade(
        tuple(stages.values()),
        tuple(variables),
        encoder,
        names,
        tuple(digests),
        batch_size=config.batch_size,
        mesh=mesh,
    )


def is_run(path: str) -> bool:
    """Whether a path is a run directory of imagen_ft.finetune, not weights from elsewhere."""
    config = epath.Path(path) / "config.json"
    return not epath.Path(path).exists() or (config.exists() and "stage" in read_json(config))


def load_public(
    path: str,
    denoiser: Denoiser,
    text_shape: tuple[int, int],
    place: str,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Loads DeepFloyd IF's weights for a denoiser.

    Args:
        path: an import, or a folder in diffusers' layout.
        denoiser: whose network they have to be.
        text_shape: of one prompt's states.
        place: of the denoiser in the config, for messages.
        mesh: see `weights.load_unet`.

    Raises:
        InputError: they are another network's.
    """
    check_public(denoiser.prediction, path, place)
    model, params = weights.load_unet(path, mesh=mesh)
    ours = dataclasses.replace(denoiser.model, dtype=model.dtype, remat=model.remat)
    if ours != model:
        fields = [f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
        field = next(f for f in fields if getattr(ours, f) != getattr(model, f))
        raise InputError(
            f"{place}: {field} is {getattr(ours, field)}, the weights of {path} have "
            f"{getattr(model, field)}"
        )
    wanted = denoiser.shapes(text_shape)["params"]
    if jax.tree.map(jnp.shape, params) != jax.tree.map(lambda leaf: leaf.shape, wanted):
        raise InputError(
            f"{place}: the weights of {path} take text states or images of another width than the "
            "config has"
        )
    return {"params": params}


def check_public(prediction: str, path: str, place: str) -> None:
    """DeepFloyd IF's networks predict eps; see `load_public`.

    Raises:
        InputError: the denoiser is to predict something else.
    """
    if prediction != "eps":
        raise InputError(
            f"{place}: prediction={prediction!r}, but the weights of {path} give 'eps'"
        )


def check_same_model(
    run: str, stage: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> None:
    """Compares what a run was trained with, with what we take it for.

    Args:
        run: a run directory.
        stage: the network we expect.
        config: its `text` and `class_names` are what we expect.

    Raises:
        InputError: they differ.
    """
    made_with = load_run_config(run)
    if "stage" not in made_with:
        raise InputError(f"{run} holds imported weights: name a run of imagen_ft.finetune")
    expected = {"stage": stage, "text": config.text, "class_names": config.class_names}
    for field, value in expected.items():
        if _as_trained(made_with[field]) != _as_trained(value):
            raise InputError(
                f"{run} was trained with another {field} than the config has: name another run"
            )


def _as_trained(value: Any) -> Any:
    """Without the fields that say how to compute, not what: they may differ in sampling."""
    value = plain(value)
    if isinstance(value, dict) and "unet" in value:
        kept = {name: x for name, x in value["unet"].items() if name not in ("dtype", "remat")}
        return {**value, "unet": kept}
    return value


def check_same_text(run: str, encoder: TextEncoder) -> None:
    """Compares the text states that a run was trained with, with ours.

    Args:
        run: a run directory.
        encoder: ours.

    Raises:
        InputError: they are of another encoder.
    """
    trained_with = read_json(epath.Path(run) / "inputs.json").get("text", "")
    if trained_with != encoder.digest:
        raise InputError(
            f"{run} was trained with the text states of another encoder than config.text has now: "
            "name the cache that it was trained with"
        )


def parameter_shapes(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Shapes of the parameters of every stage and of the text encoder; nothing is loaded."""
    shape, encoder = text_shapes(config.text)
    shapes = {
        name: stage.denoiser.shapes(shape)["params"] for name, stage in make_stages(config).items()
    }
    return {**shapes, **encoder}


def text_shapes(config: ml_collections.ConfigDict) -> tuple[tuple[int, int], dict[str, Any]]:
    """Shape of one prompt's states; shapes of the encoder's parameters, by name.

    A cache that is not made yet is as good here as one that is: `config.shape` says what it holds.
    """
    if config.get("shape") is not None:
        return tuple(config.shape), {}
    encoder = make_text_encoder(config)
    return encoder.shape, {"text_encoder": encoder.parameters()}
