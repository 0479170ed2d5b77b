"""Moving averages of the weights: how fast each forgets, by step."""

from collections.abc import Callable

import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float, Int

from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.types import Array

# The average that is sampled and evaluated with.
MAIN = "main"
Decay = Callable[[Int[Array, ""]], Float[Array, ""]]


def make_decays(config: ml_collections.ConfigDict) -> dict[str, Decay]:
    """The decay of each average, as a function of the updates made before.

    Args:
        config: by name, `main` among them, or none at all: `schedule` and what belongs to it.
            'constant' and 'warmup': `decay`. 'warmup' is min(decay, (1 + n) / (10 + n)), as the
            first steps' weights are worth little. 'power': `relative_width`, the average's width
            as a share of the training's length so far (Karras et al. 2024, section 3.1).

    Raises:
        InputError: no `main`, an unknown schedule, or a number out of range.
    """
    if config and MAIN not in config:
        raise InputError(
            f"config.ema must have {MAIN!r}, the average that images are sampled with; add it"
        )
    return {name: _make_decay(f"config.ema.{name}", spec) for name, spec in config.items()}


def _make_decay(field: str, spec: Fields) -> Decay:
    schedule = spec.get("schedule", "warmup")
    needed = "relative_width" if schedule == "power" else "decay"
    if schedule in ("constant", "warmup", "power") and needed not in spec:
        raise InputError(f"{field}.schedule={schedule!r} needs {field}.{needed}")
    if schedule == "power":
        width = spec["relative_width"]
        # At 0.28 the average is as wide as one that weighs all steps alike: nothing is wider.
        if not 0.0 < width < 0.28:
            raise InputError(f"{field}.relative_width must be between 0 and 0.28, got {width}")
        gamma = power_of(width)
        return lambda n: (1.0 - 1.0 / (1.0 + n)) ** (gamma + 1.0)
    if schedule not in ("constant", "warmup"):
        schedules = "'constant', 'warmup', 'power'"
        raise InputError(f"{field}.schedule must be one of {schedules}, got {schedule!r}")
    decay = spec["decay"]
    if not 0.0 < decay < 1.0:
        raise InputError(
            f"{field}.decay must be between 0 and 1, got {decay}; for no "
            "average leave config.ema out"
        )
    if schedule == "constant":
        return lambda n: jnp.asarray(decay)
    return lambda n: jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def power_of(relative_width: float) -> float:
    """Power gamma of the average with weights t^gamma of this width (Karras et al. 2024, Eq. 126).

    Its standard deviation over t in [0, 1] is sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
    """
    inverse = relative_width**-2
    # (gamma + 2)^2 (gamma + 3) = (gamma + 1) / width^2
    return float(np.max(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real))
