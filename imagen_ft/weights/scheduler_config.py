"""`scheduler_config.json` of DeepFloyd IF in diffusers' layout."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from imagen_ft.weights.part_files import part_folder
from imagen_ft.weights.pipeline_parts import NoSuchPart
from launch.errors import InputError
from launch.files import read_object

# The fields that decide what IF's samplers compute, with DDPMScheduler's defaults.
_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
}
# Upper bound of every number; a schedule is a table of num_train_timesteps rows.
_MOST = 100_000
_IMPLEMENTED = {
    "_class_name": ("DDPMScheduler",),
    "beta_schedule": ("squaredcos_cap_v2",),
    "variance_type": ("learned_range", "fixed_small", "fixed_small_log", "fixed_large"),
    "prediction_type": ("epsilon",),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": (0,),
    "rescale_betas_zero_snr": (False,),
    "trained_betas": (None,),
}


def scheduler_settings(config: Mapping[str, Any], where: Any) -> dict[str, Any]:
    """The settings of a `scheduler_config.json`, defaults filled in.

    Raises `InputError` naming the first field that is not implemented or has the wrong type.
    """
    settings = {field: config.get(field, default) for field, default in _DEFAULTS.items()}
    checked = {**settings, "_class_name": config.get("_class_name", "DDPMScheduler")}
    for field, values in _IMPLEMENTED.items():
        if checked[field] not in values:
            raise InputError(
                f"{where}: {field} must be {' or '.join(map(repr, values))}, as DeepFloyd IF has "
                f"it, got {checked[field]!r}; use IF's scheduler"
            )
    for field, default in _DEFAULTS.items():
        value = settings[field]
        # bool first: in Python it is an int, too.
        if isinstance(default, bool):
            is_sound, kind = isinstance(value, bool), "True or False"
        elif isinstance(default, int | float):
            is_sound = type(value) in (int, float) and 0 <= value <= _MOST
            kind = f"a number from 0 to {_MOST:,}"
        else:
            continue
        if not is_sound:
            raise InputError(f"{where}: {field} must be {kind}, got {value!r}; use IF's scheduler")
    return settings


def scheduler(path: epath.PathLike) -> dict[str, Any] | None:
    """The settings of a pipeline's scheduler; None if the weights have none.

    `path` is a pipeline's folder, an import, or a repository of the Hub. Raises `InputError` as
    `scheduler_settings`.
    """
    try:
        file = part_folder(path, "scheduler") / "scheduler_config.json"
    except NoSuchPart:
        return None
    return scheduler_settings(read_object(file), file)
