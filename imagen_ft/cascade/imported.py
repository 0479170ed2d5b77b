"""What the schedulers of imported weights say, compared with a config."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from imagen_ft import weights
from imagen_ft.cascade.changes import changed
from imagen_ft.cascade.latent_weights import check_settings, is_latent
from imagen_ft.cascade.stage_weights import PUBLIC, open_run, public_path
from imagen_ft.diffusion.schedule import make_schedule
from imagen_ft.diffusion.spacing import named_spacings
from launch.cli import say
from launch.errors import InputError

# Our `logvar_coeff` by diffusers' names; `fixed_small_log` is the small variance, computed through
# its logarithm.
_VARIANCES = {
    "learned_range": "learned",
    "fixed_small": 0.0,
    "fixed_small_log": 0.0,
    "fixed_large": 1.0,
}


def as_imported(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A config whose stages draw what their imported weights can draw; a copy where it differs.

    A network whose scheduler has a fixed variance has not learned one, whatever its channels
    (DreamBooth's IF): where a stage asks for the learned variance, the fixed one replaces it, and a
    line says so. Other differences may be intended; one line per stage lists them.

    Raises:
        InputError: a stage has another noise schedule or prediction than its weights.
    """
    taken = {}
    for name, entry in config.stages.items():
        if not _is_public(entry.get("run", "")):
            continue
        # 1. Stable Diffusion: schedule and prediction must be the weights' own.
        path = public_path(entry.run)
        if entry.stage.get("autoencoder") or is_latent(path):
            check_settings(f"config.stages.{name}.stage", entry.stage, path)
            continue
        # 2. IF: the schedule must be the weights' own.
        settings = weights.scheduler(path)
        if settings is None:
            continue
        _check_schedule(f"config.stages.{name}.stage.schedule", entry, settings, path)
        theirs, ours = _of_scheduler(settings), _of_stage(entry)
        # 3. The variance, if it was not learned.
        fixed = theirs["sampler.logvar_coeff"]
        if ours["sampler.logvar_coeff"] == "learned" != fixed:
            ours["sampler.logvar_coeff"], taken[name] = fixed, {"logvar_coeff": fixed}
            _say(
                f"config.stages.{name}.sampler.logvar_coeff: {fixed} replaces 'learned', "
                f"as the scheduler of {path} has "
                f"variance_type={settings['variance_type']!r}"
            )
        # 4. What else differs, as information.
        others = [
            f"{field}={ours[field]!r} (there {theirs[field]!r})"
            for field in theirs
            if ours[field] not in (theirs[field], None)
        ]
        if others:
            _say(
                f"config.stages.{name} is sampled differently from the scheduler of {path}: "
                f"{', '.join(others)}"
            )
    return changed(config, {"stages": taken}, loading=False) if taken else config


def _is_public(run: str) -> bool:
    """Whether a stage's weights are public; False also for what loading will not find."""
    return run.startswith(PUBLIC) or bool(
        run and epath.Path(run).exists() and open_run(run) is None
    )


def _check_schedule(
    field: str, entry: ml_collections.ConfigDict, settings: Mapping[str, Any], path: str
) -> None:
    theirs = dict(
        name=settings["beta_schedule"], num_train_timesteps=settings["num_train_timesteps"]
    )
    if make_schedule(entry.stage.schedule) != make_schedule(theirs):
        raise InputError(
            f"{field} must be {theirs}, as for the weights of {path}, got {entry.stage.schedule!r}"
        )


def _of_scheduler(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler does, in the fields of a stage."""
    clips = settings["thresholding"] or settings["clip_sample"]
    # With sample_max_value 1, dynamic thresholding is clipping.
    dynamic = settings["thresholding"] and settings["sample_max_value"] > 1
    percentile = round(100 * settings["dynamic_thresholding_ratio"], 6)
    return {
        "sampler.logvar_coeff": _VARIANCES[settings["variance_type"]],
        "sampler.spacing": settings["timestep_spacing"],
        "threshold_percentile": (percentile if dynamic else 100.0) if clips else "none",
        "threshold_maximum": float(settings["sample_max_value"]) if dynamic else None,
    }


def _of_stage(entry: ml_collections.ConfigDict) -> dict[str, Any]:
    """The same for a stage; None where it has no such setting."""
    spacing = entry.sampler.get("spacing", "trailing")
    maximum = entry.get("threshold_maximum", float("inf"))
    # Divided by at most 1, values are only clipped.
    dynamic = entry.threshold_percentile < 100 and maximum > 1
    return {
        "sampler.logvar_coeff": entry.sampler.get("logvar_coeff")
        if entry.sampler.name == "ddpm"
        else None,
        # IF's own lists of steps go with any scheduler.
        "sampler.spacing": None if spacing in named_spacings() else spacing,
        "threshold_percentile": entry.threshold_percentile if dynamic else 100.0,
        "threshold_maximum": maximum if dynamic else None,
    }


def _say(line: str) -> None:
    # One line per job, not one per host.
    if jax.process_index() == 0:
        say(line)
