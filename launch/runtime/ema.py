"""Exponential moving averages of the weights: the decay of each by step."""

from collections.abc import Callable

import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float, Int

from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.types import Array

# The average that is used for sampling and evaluation.
MAIN = "main"
Decay = Callable[[Int[Array, ""]], Float[Array, ""]]


def make_decays(config: ml_collections.ConfigDict) -> dict[str, Decay]:
    """The decay of each average, a function of n, the number of updates made before.

    `config` is empty or holds `main` and maybe more. `schedule` is 'constant', 'warmup' (both with
    `decay` in (0, 1)) or 'power' with `relative_width` in (0, 0.28): the average's width as a share
    of the training so far (Karras et al. 2024, section 3.1). Raises `InputError` otherwise.
    """
    if config and MAIN not in config:
        raise InputError(f"config.ema must have {MAIN!r}, the average used for sampling; add it")
    return {name: _make_decay(f"config.ema.{name}", spec) for name, spec in config.items()}


def _make_decay(field: str, spec: Fields) -> Decay:
    schedule = spec.get("schedule", "warmup")
    needed = "relative_width" if schedule == "power" else "decay"
    if schedule in ("constant", "warmup", "power") and needed not in spec:
        raise InputError(f"{field}.schedule={schedule!r} needs {field}.{needed}")
    if schedule == "power":
        width = spec["relative_width"]
        # sqrt(1/12) = 0.289 is the width of the plain mean of all steps: no power is wider.
        if not 0.0 < width < 0.28:
            raise InputError(f"{field}.relative_width must be between 0 and 0.28, got {width}")
        gamma = power_of(width)
        # Karras et al. 2024: beta(n) = (1 - 1/n)^(gamma + 1), where their n counts from 1.
        return lambda n: (1.0 - 1.0 / (1.0 + n)) ** (gamma + 1.0)
    if schedule not in ("constant", "warmup"):
        schedules = "'constant', 'warmup', 'power'"
        raise InputError(f"{field}.schedule must be one of {schedules}, got {schedule!r}")
    decay = spec["decay"]
    if not 0.0 < decay < 1.0:
        raise InputError(
            f"{field}.decay must be between 0 and 1, got {decay}; to train without an average "
            "leave config.ema out"
        )
    if schedule == "constant":
        return lambda n: jnp.asarray(decay)
    # The first weights are worth little: forget them quickly at first.
    return lambda n: jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def power_of(relative_width: float) -> float:
    """Power gamma of the average with weights t^gamma whose width is given.

    Karras et al. 2024, Eq. 126. The width is the standard deviation of t in [0, 1].
    """
    inverse = relative_width**-2
    # Solve width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) for the largest root, that is
    # gamma^3 + 7 gamma^2 + (16 - 1/width^2) gamma + (12 - 1/width^2) = 0.
    return float(np.max(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real))
