"""Samplers from configs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_collections

from imagen_ft.diffusion.consistency import MultistepConsistency
from imagen_ft.diffusion.ddpm import DDIM, DDPM, EulerAncestral
from imagen_ft.diffusion.dpm_solver import DPMpp, DPMpp2S
from imagen_ft.diffusion.edm import Euler, Heun
from imagen_ft.diffusion.samplers import Sampler
from imagen_ft.diffusion.unipc import SOLVER_TYPES, UniPC
from launch.errors import InputError
from launch.runtime.limits import check_numbers

_MOST_STEPS = 10**6
SAMPLERS: dict[str, type[Any]] = {  # dataclasses, which `Sampler` cannot say
    "ddpm": DDPM,
    "ddim": DDIM,
    "dpmpp": DPMpp,
    "dpmpp_2s": DPMpp2S,
    "unipc": UniPC,
    "euler": Euler,
    "heun": Heun,
    "euler_ancestral": EulerAncestral,
    "consistency": MultistepConsistency,
}
# Configs of these may set both strengths of noise, though each reads only one, so that changing the
# name is enough to switch between them. Configs of other samplers may not.
_TOLERANT = ("ddpm", "ddim")
_NEEDED = {"ddpm": "logvar_coeff", "ddim": "eta"}
_STRENGTHS = ("logvar_coeff", "eta")


def make_sampler(config: ml_collections.ConfigDict) -> Sampler:
    """Builds a sampler from `name` and the fields of its class, most of which may be missing.

    'ddpm' needs `logvar_coeff`, which may be 'learned', and 'ddim' `eta`. A sampler that draws no
    noise drops a learned variance and takes no strength of noise but 0.

    Raises:
        InputError: an unknown name, a number of steps below 1, another field out of its range, or a
            strength of noise that the sampler does not use.
    """
    check_numbers(config, {"num_steps": (1, _MOST_STEPS), "order": (1, 3)}, "sampler")
    name = config.name
    if name not in SAMPLERS:
        names = ", ".join(map(repr, SAMPLERS))
        raise InputError(f"sampler.name must be one of {names}, got {name!r}")
    # A strength that would silently do nothing is a mistake in the config.
    for strength in unread_strengths(name):
        value = config.get(strength, 0.0)
        if value not in (0.0, "0", "learned"):
            raise InputError(
                f"sampler.{strength} must be 0 or left out for {name!r}, which adds no such noise, "
                f"got {value!r}; set it to 0"
            )
    fields = {}
    for field in dataclasses.fields(SAMPLERS[name]):
        if field.name in config or field.name == _NEEDED.get(name):
            value = getattr(config, field.name)  # a missing one raises, and `reading` says so
            read = _FIELDS.get(field.name, lambda _, value: value)
            fields[field.name] = read(field.name, value)
    return SAMPLERS[name](**fields)


def unread_strengths(name: str) -> tuple[str, ...]:
    """Strengths of noise that must be 0 in a sampler's config; none for an unknown sampler."""
    if name in _TOLERANT or name not in SAMPLERS:
        return ()
    read = {field.name for field in dataclasses.fields(SAMPLERS[name])}
    return tuple(field for field in _STRENGTHS if field not in read)


def _fraction(name: str, value: float | str) -> float:
    # Where the config says 'learned', a number from the command line arrives as a string.
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise InputError(f"sampler.{name} must be a number in [0, 1], got {value!r}")
    return number


def _mixture(name: str, value: float | str) -> float | None:
    return None if value == "learned" else _fraction(name, value)


def _not_negative(name: str, value: Any) -> float:
    if not _is_number(value) or not value >= 0.0:
        raise InputError(f"sampler.{name} must be a number of at least 0, got {value!r}")
    return float(value)


def _not_positive(name: str, value: Any) -> float:
    if not _is_number(value) or not value <= 0.0:
        raise InputError(
            f"sampler.{name} must be at most 0, got {value!r}; -inf keeps all times, -10.2 drops "
            "those that are almost pure noise"
        )
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _solver_type(name: str, value: Any) -> str:
    if value not in SOLVER_TYPES:
        raise InputError(f"sampler.{name} must be one of {', '.join(SOLVER_TYPES)}, got {value!r}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"sampler.{name} must be a string, got {value!r}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"sampler.{name} must be True or False, got {value!r}")
    return value


# How each field is read; others are taken as they are.
_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "logvar_coeff": _mixture,
    "eta": _fraction,
    "churn": _not_negative,
    "churn_min": _not_negative,
    "churn_max": _not_negative,
    "churn_noise": _not_negative,
    "logsnr_min": _not_positive,
    "solver_type": _solver_type,
    "spacing": _text,
    "keeps_noise": _flag,
}
