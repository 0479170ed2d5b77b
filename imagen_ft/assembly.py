"""From configs and run directories to denoisers, stages and cascades."""

from typing import Any

import ml_collections
from etils import epath

from imagen_ft import samplers
from imagen_ft.cascade import Cascade
from imagen_ft.models.unet import UNet
from imagen_ft.schedule import make_schedule
from imagen_ft.stage import Denoiser, Stage
from imagen_ft.text import TextEncoder, make_text_encoder
from input_pipeline.files import InputError, read_json
from launch.runtime import checkpoint
from launch.runtime.config import module_fields, plain
from launch.runtime.workdir import load_run_config


def make_denoiser(config: ml_collections.ConfigDict) -> Denoiser:
    """Builds a denoiser from `size`, `low_size`, `channels`, `schedule`, `unet` (fields of `UNet`).

    Raises:
        InputError: unknown schedule, or sizes and levels that do not fit together.
    """
    fields = module_fields(config.unet)
    levels = len(fields["block_out_channels"])
    if len(fields["attention"]) != levels:
        raise InputError(
            f"unet.attention has {len(fields['attention'])} values, block_out_channels {levels}"
        )
    if config.size % 2 ** (levels - 1):
        raise InputError(f"size={config.size} cannot be halved {levels - 1} times, once a level")
    if config.low_size and config.size % config.low_size:
        raise InputError(f"low_size={config.low_size} does not divide size={config.size}")
    model = UNet(out_channels=config.channels, noise_level=config.low_size > 0, **fields)
    schedule = make_schedule(config.schedule)
    return Denoiser(model, schedule, config.size, config.low_size, config.channels)


def make_stage(config: ml_collections.ConfigDict, denoiser: Denoiser) -> Stage:
    """Builds a stage from the fields of `Stage`; a base needs no `noise_augmentation`.

    Raises:
        InputError: an unknown sampler, a level outside [0, 1].
    """
    level = config.get("noise_augmentation", 0.0)
    if not 0.0 <= level <= 1.0:
        raise InputError(f"noise_augmentation={level}: a level is in [0, 1]")
    return Stage(
        denoiser=denoiser,
        sampler=samplers.make_sampler(config.sampler),
        guidance_weight=config.guidance_weight,
        threshold_percentile=config.threshold_percentile,
        noise_augmentation=level,
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


def load_cascade(config: ml_collections.ConfigDict) -> Cascade:
    """Loads the stages that `config.stages` names, each from its run directory (`run`).

    Raises:
        InputError: a run is missing, unfinished or damaged, was made with another network, text
            encoder or list of classes than the config says, or the stages do not fit together.
    """
    encoder = make_text_encoder(config.text)
    encoder.embed(config.class_names)  # A prompt that a cache lacks is found before any work.
    stages = make_stages(config)
    variables, digests = [], []
    for name, stage in stages.items():
        run = config.stages[name].run
        check_same_model(run, config.stages[name].stage, config)
        check_same_text(run, encoder)
        abstract = stage.denoiser.shapes(encoder.shape)
        total_steps = load_run_config(run).total_steps
        variables.append(checkpoint.load_inference(run, abstract, total_steps))
        digests.append(checkpoint.digest(run))
    names = tuple(config.class_names)
    return Cascade(tuple(stages.values()), tuple(variables), encoder, names, tuple(digests))


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
    expected = {"stage": stage, "text": config.text, "class_names": config.class_names}
    for field, value in expected.items():
        if plain(made_with[field]) != plain(value):
            raise InputError(
                f"{run} was trained with another {field} than the config has: name another run"
            )


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
    encoder = make_text_encoder(config.text)
    shapes = {
        name: stage.denoiser.shapes(encoder.shape)["params"]
        for name, stage in make_stages(config).items()
    }
    return {**shapes, "text_encoder": encoder.parameters()}
