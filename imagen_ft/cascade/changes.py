"""A cascade's settings by short names, changed in all its stages or in one."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections

from imagen_ft.cascade import values
from imagen_ft.cascade.values import Kind
from imagen_ft.diffusion.sampler_from_config import unread_strengths
from launch.errors import InputError


class _Setting(NamedTuple):
    """Where a setting is in a stage's entry of the config, and what its values must be."""

    field: str
    kind: Kind


SAMPLING = {
    "sampler": _Setting("sampler.name", values.NAME),
    "num_steps": _Setting("sampler.num_steps", values.INTEGER),
    "spacing": _Setting("sampler.spacing", values.NAME),
    "logvar_coeff": _Setting("sampler.logvar_coeff", values.MIXTURE),
    "eta": _Setting("sampler.eta", values.NUMBER),
    "keeps_noise": _Setting("sampler.keeps_noise", values.FLAG),
    "order": _Setting("sampler.order", values.INTEGER),
    "solver_type": _Setting("sampler.solver_type", values.NAME),
    "churn": _Setting("sampler.churn", values.NUMBER),
    "churn_min": _Setting("sampler.churn_min", values.NUMBER),
    "churn_max": _Setting("sampler.churn_max", values.NUMBER),
    "churn_noise": _Setting("sampler.churn_noise", values.NUMBER),
    "logsnr_min": _Setting("sampler.logsnr_min", values.NUMBER),
    "guidance_weight": _Setting("guidance_weight", values.NUMBER),
    "guidance_interval": _Setting("guidance_interval", values.NUMBERS),
    "guidance_schedule": _Setting("guidance_schedule", values.NAME),
    "guidance_rescale": _Setting("guidance_rescale", values.NUMBER),
    "cads_scale": _Setting("cads_scale", values.NUMBER),
    "cads_interval": _Setting("cads_interval", values.NUMBERS),
    "cads_mix": _Setting("cads_mix", values.NUMBER),
    "threshold_percentile": _Setting("threshold_percentile", values.NUMBER),
    "threshold_maximum": _Setting("threshold_maximum", values.NUMBER),
    "noise_augmentation": _Setting("noise_augmentation", values.NUMBER),
    "stored_size": _Setting("stored_size", values.INTEGER),
}
# For all stages it is the cascade's batch size, for one stage that stage's own.
_BATCH_SIZE = {"batch_size": _Setting("batch_size", values.INTEGER)}
# What one call of `Cascade.sample` may change; `batch_size` there is the request's.
FOR_A_CALL = (*SAMPLING, "stages")
# Settings that decide about the weights.
LOADING = {
    "run": _Setting("run", values.PATH),
    "ema": _Setting("ema", values.NAME),
    "best": _Setting("best", values.FLAG),
    "variant": _Setting("variant", values.NAME),
    "lora": _Setting("lora", values.PATH),
    "guide": _Setting("guide", values.GUIDE),
    "dtype": _Setting("stage.unet.dtype", values.NAME),
}


def changed(
    config: ml_collections.ConfigDict, changes: Mapping[str, Any], loading: bool
) -> ml_collections.ConfigDict:
    """A copy of a config with other settings.

    `changes` are settings by name (`SAMPLING`) for all stages; `batch_size`, the cascade's; and
    `stages`, a dict of settings by stage, which win over those for all. With `loading`, as weights
    are still to be loaded, `LOADING` may change as well.

    Raises:
        InputError: no setting or stage has such a name (the message lists those there are), or a
            value is of another type.
    """
    # 1. The names.
    common = dict(changes)
    by_stage = common.pop("stages", {})
    names = {**SAMPLING, **(LOADING if loading else {})}
    if not isinstance(by_stage, Mapping):
        raise InputError(f"stages must be a dict from stage names to settings, got {by_stage!r}")
    _check_names("stage", by_stage, config.stages)
    # 2. Settings of the cascade.
    locked, config = config.is_locked, ml_collections.ConfigDict(_unshared(config))
    with config.ignore_type():
        for name in _BATCH_SIZE.keys() & common.keys():
            _set(config, name, _BATCH_SIZE[name], common.pop(name))
        _check_names("setting", common, {**names, **_BATCH_SIZE, "stages": None})
        # 3. Settings of each stage, first those for all.
        for stage, entry in config.stages.items():
            own = by_stage.get(stage, {})
            if not isinstance(own, Mapping):
                raise InputError(f"stages[{stage!r}] must be a dict of settings, got {own!r}")
            of_stage = {**names, **_BATCH_SIZE}
            _check_names(f"setting of {stage}", own, of_stage)
            # A stage's own settings win.
            given = {**_fitting(common, entry), **own}
            for name, value in given.items():
                _set(entry, name, of_stage[name], value)
            # 4. Fields that follow from those that changed.
            if "dtype" in given and entry.stage.get("autoencoder"):
                entry.stage.autoencoder.dtype = entry.stage.unet.dtype
            if "sampler" in given:
                _drop_strengths(entry.sampler, given)
    return config.lock() if locked else config


def _unshared(node: ml_collections.ConfigDict) -> dict[str, Any]:
    """A part held in two places (one sampler for all stages) becomes two: each may change alone."""
    return {
        name: _unshared(value) if isinstance(value, ml_collections.ConfigDict) else value
        for name, value in node.items()
    }


def _fitting(common: Mapping[str, Any], entry: ml_collections.ConfigDict) -> dict[str, Any]:
    """Without the noise of a low-resolution image for a stage that has none."""
    left_out = () if entry.stage.low_size else ("noise_augmentation",)
    return {name: value for name, value in common.items() if name not in left_out}


def _drop_strengths(sampler: ml_collections.ConfigDict, given: Iterable[str]) -> None:
    """Removes the strengths of another sampler's noise that were not asked for."""
    for name in unread_strengths(sampler.name):
        if name in sampler and name not in given:
            del sampler[name]


def _set(node: ml_collections.ConfigDict, name: str, setting: _Setting, value: Any) -> None:
    value = setting.kind.of(name, value)
    *folders, field = setting.field.split(".")
    for folder in folders:
        node = node[folder]
    node[field] = value


def _check_names(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            raise InputError(f"there is no {kind} {name!r}; use one of {', '.join(known)}")
