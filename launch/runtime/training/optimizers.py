"""Optimisers and learning-rate schedules by the names that configs use."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import optax

from launch.errors import InputError
from launch.runtime.layers.paths import matching
from launch.runtime.limits import MOST, check_numbers
from launch.runtime.optional_fields import Defaults, below, unset


def make_schedule(config: ml_collections.ConfigDict, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, cosine decay to zero, or in steps.

    `schedule` is 'constant', 'cosine' or 'step'. Warm-up rises from `warmup_from` (0) in
    `warmup_steps`. For 'step', from each of `boundaries` (steps of the whole run) on, the rate is
    `factor` (0.1) of what it was. Raises `InputError` for an unknown schedule or unused fields.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule != "step" and (extra := {"boundaries", "factor"} & set(config)):
        raise InputError(
            f"optimizer.{min(extra)} needs optimizer.schedule='step'; set it, "
            f"or leave {min(extra)} out"
        )
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup))
    elif config.schedule == "step":
        after = optax.piecewise_constant_schedule(peak, _drops(config))
    else:
        schedules = "'constant', 'cosine', 'step'"
        raise InputError(f"optimizer.schedule must be one of {schedules}, got {config.schedule!r}")
    if not warmup:
        # `join_schedules` restarts the count at 0 after the warm-up.
        return after
    before = optax.linear_schedule(config.get("warmup_from", 0.0), peak, warmup)
    return optax.join_schedules([before, after], [warmup])


def _drops(config: ml_collections.ConfigDict) -> dict[int, float]:
    # optax wants factors by step, here counted from the end of the warm-up.
    boundaries, warmup = tuple(config.get("boundaries", ())), config.warmup_steps
    if not boundaries or list(boundaries) != sorted({b for b in boundaries if warmup < b <= MOST}):
        raise InputError(
            f"optimizer.boundaries must be increasing step numbers above warmup_steps={warmup}, "
            f"got {boundaries}"
        )
    return dict.fromkeys((b - warmup for b in boundaries), config.get("factor", 0.1))


def _adafactor(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    # Saharia et al. 2022 (Imagen) train the base model with Adafactor: a given rate, no first
    # moment, and updates not scaled by the parameter's size.
    return optax.adafactor(rate, multiply_by_parameter_scale=False)


def _adam(rate: optax.Schedule, weight_decay: float, **moments: Any) -> Any:
    return optax.adam(rate, **moments)


def _adamw(
    rate: optax.Schedule, weight_decay: float, no_decay: Sequence[str] = (), **moments: Any
) -> Any:
    mask = functools.partial(_decayed, no_decay)
    return optax.adamw(rate, weight_decay=weight_decay, mask=mask, **moments)


def _lamb(
    rate: optax.Schedule, weight_decay: float, no_decay: Sequence[str] = (), **moments: float
) -> Any:
    mask = functools.partial(_decayed, no_decay)
    return optax.lamb(rate, weight_decay=weight_decay, mask=mask, **moments)


def _sgd(
    rate: optax.Schedule,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = True,
    no_decay: Sequence[str] = (),
) -> Any:
    # Added to the gradient before momentum: what papers mean by the weight decay of SGD.
    decay = optax.add_decayed_weights(weight_decay, mask=functools.partial(_decayed, no_decay))
    return optax.chain(decay, optax.sgd(rate, momentum=momentum, nesterov=nesterov))


# Fields of every optimiser, and those that several share.
_SCHEDULE = ("learning_rate", "schedule", "warmup_steps", "warmup_from", "boundaries", "factor")
_SHARED = ("name", *_SCHEDULE, "weight_decay", "clip_norm")
_MOMENTS = ("b1", "b2", "eps")
# By name: the function that makes it, its own fields, whether it decays weights.
_OPTIMIZERS: dict[str, tuple[Callable, tuple[str, ...], bool]] = {
    "adafactor": (_adafactor, (), False),
    "adam": (_adam, (*_MOMENTS, "mu_dtype"), False),
    "adamw": (_adamw, (*_MOMENTS, "mu_dtype", "no_decay"), True),
    "lamb": (_lamb, (*_MOMENTS, "no_decay"), True),
    "sgd": (_sgd, ("momentum", "nesterov", "no_decay"), True),
}


def make_optimizer(
    config: ml_collections.ConfigDict, total_steps: int, frozen: Any = None
) -> optax.GradientTransformation:
    """Builds the optimiser from `config.optimizer`.

    Fields: `name` ('adafactor', 'adam', 'adamw', 'lamb' or 'sgd'); those of `make_schedule`;
    `clip_norm`, of the whole gradient (0: no clipping); `weight_decay` (adamw, lamb, sgd), on
    kernels only, except those that a pattern of `no_decay` matches; optionally `b1`, `b2`, `eps`
    (adam, adamw, lamb), `momentum`, `nesterov` (sgd). Parameters in `frozen`, a result of
    `frozen_parameters`, get no update and no optimiser state. Raises `InputError` for an unknown
    optimiser or field, or a number that the optimiser would ignore.
    """
    # 1. Check the fields.
    if config.name not in _OPTIMIZERS:
        names = ", ".join(repr(name) for name in _OPTIMIZERS)
        raise InputError(f"optimizer.name must be one of {names}, got {config.name!r}")
    make, own, decays = _OPTIMIZERS[config.name]
    if unknown := sorted(set(config) - {*_SHARED, *own}):
        allowed = ", ".join((*_SHARED, *own))
        raise InputError(f"optimizer {config.name!r} has no field {unknown[0]!r}; use {allowed}")
    if config.weight_decay and not decays:
        raise InputError(
            f"optimizer.weight_decay must be 0 for {config.name!r}, got "
            f"{config.weight_decay}; set it to 0, or use 'adamw', 'lamb' or 'sgd'"
        )
    check_numbers(config, {"warmup_steps": (0, MOST)}, "optimizer")
    for field in ("learning_rate", "weight_decay", "clip_norm"):
        if not 0 <= config[field] < float("inf"):
            raise InputError(
                f"optimizer.{field} must be a number of at least 0, got {config[field]}"
            )
    # 2. Build it. Clipping comes first: it is of the raw gradient.
    rate = make_schedule(config, total_steps)
    tx = make(rate, config.weight_decay, **{name: config[name] for name in own if name in config})
    if config.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    # 3. Give frozen parameters an optimiser without state.
    if frozen is None or not any(jax.tree.leaves(frozen)):
        return tx
    labels = jax.tree.map(lambda still: "frozen" if still else "trained", frozen)
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def lacking_in_optimizer(config: ml_collections.ConfigDict) -> Defaults:
    """The optional fields of `make_optimizer`, with their defaults, that `config` lacks."""
    make, own, _ = _OPTIMIZERS.get(config.name, (None, (), False))
    defaults: Defaults = {"warmup_from": 0.0}
    if config.schedule == "step":
        defaults |= {"boundaries": (), "factor": 0.1}
    for name in own:
        parameters = inspect.signature(make).parameters if make else {}
        if name not in parameters:  # it is passed through to optax's optimiser
            parameters = inspect.signature(getattr(optax, config.name)).parameters
        default = parameters[name].default
        defaults[name] = unset(str) if default is None else default
    return below("optimizer", config, defaults)


def frozen_parameters(patterns: Sequence[str], params: Any) -> Any:
    """Which parameters do not train: a tree of booleans.

    The patterns are regular expressions searched for in paths such as
    `down_0/resnet_0/conv1/kernel`. Raises `InputError` if one is invalid or matches nothing, or
    nothing is left to train.
    """
    frozen = matching("config.frozen", patterns, params)
    if all(jax.tree.leaves(frozen)):
        raise InputError("config.frozen leaves no parameter to train; freeze fewer")
    return frozen


def stop_frozen(params: Any, frozen: Any) -> Any:
    """Cuts the gradients of frozen parameters, which spares the backward pass their work."""
    stop = lambda still, leaf: jax.lax.stop_gradient(leaf) if still else leaf  # noqa: E731
    return jax.tree.map(stop, frozen, params)


def _decayed(no_decay: Sequence[str], params: optax.Params) -> optax.Params:
    # Biases and scales of normalisations are vectors: they are never decayed.
    spared = matching("optimizer.no_decay", no_decay, params)
    return jax.tree.map(lambda leaf, spare: leaf.ndim > 1 and not spare, params, spared)
