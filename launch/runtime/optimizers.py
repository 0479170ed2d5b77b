"""Optimisers and learning-rate schedules by the names that configs use."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import optax

from input_pipeline.files import InputError


def make_schedule(config: ml_collections.ConfigDict, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant or cosine.

    Args:
        config: `learning_rate`, `schedule` ('constant' or 'cosine'), `warmup_steps`.
        total_steps: where cosine reaches zero.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup))
    else:
        raise InputError(f"optimizer.schedule={config.schedule!r}: known are 'constant', 'cosine'")
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _adafactor(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    # As Imagen trains its base: a given rate, no first moment; updates are not scaled by the size
    # of the parameter.
    return optax.adafactor(rate, multiply_by_parameter_scale=False)


def _adam(rate: optax.Schedule, weight_decay: float, **moments: float) -> Any:
    return optax.adam(rate, **moments)


def _adamw(rate: optax.Schedule, weight_decay: float, **moments: float) -> Any:
    return optax.adamw(rate, weight_decay=weight_decay, mask=_is_kernel, **moments)


def _lamb(rate: optax.Schedule, weight_decay: float, **moments: float) -> Any:
    return optax.lamb(rate, weight_decay=weight_decay, mask=_is_kernel, **moments)


def _sgd(rate: optax.Schedule, weight_decay: float, momentum: float = 0.9) -> Any:
    decay = optax.add_decayed_weights(weight_decay, mask=_is_kernel)
    return optax.chain(decay, optax.sgd(rate, momentum=momentum, nesterov=True))


_SHARED = ("name", "learning_rate", "schedule", "warmup_steps", "weight_decay", "clip_norm")
_MOMENTS = ("b1", "b2", "eps")
# By name: what makes it, its own fields, whether it decays weights.
_OPTIMIZERS: dict[str, tuple[Callable, tuple[str, ...], bool]] = {
    "adafactor": (_adafactor, (), False),
    "adam": (_adam, _MOMENTS, False),
    "adamw": (_adamw, _MOMENTS, True),
    "lamb": (_lamb, _MOMENTS, True),
    "sgd": (_sgd, ("momentum",), True),
}


def make_optimizer(
    config: ml_collections.ConfigDict, total_steps: int, frozen: Any = None
) -> optax.GradientTransformation:
    """Builds the optimiser.

    Args:
        config: `name` ('adafactor', 'adam', 'adamw', 'lamb' or 'sgd'), the fields of
            `make_schedule`, `clip_norm` of the whole gradient (0: none), `weight_decay` (adamw,
            lamb, sgd; on kernels only), and where the defaults shall not hold `b1`, `b2`, `eps`
            (adam, adamw, lamb) or `momentum` (sgd).
        total_steps: length of the run.
        frozen: result of `frozen_parameters`; these get no update and no optimiser state.

    Raises:
        InputError: an unknown optimiser or field, or a number that the optimiser would ignore.
    """
    if config.name not in _OPTIMIZERS:
        known = ", ".join(repr(name) for name in _OPTIMIZERS)
        raise InputError(f"optimizer.name={config.name!r}: known are {known}")
    make, own, decays = _OPTIMIZERS[config.name]
    if unknown := sorted(set(config) - {*_SHARED, *own}):
        allowed = ", ".join((*_SHARED, *own))
        raise InputError(f"optimizer {config.name!r} has no field {unknown[0]!r}; use {allowed}")
    if config.weight_decay and not decays:
        raise InputError(
            f"optimizer.weight_decay={config.weight_decay}: {config.name!r} has none; set it to 0 "
            "or use 'adamw', 'lamb' or 'sgd'"
        )
    if config.clip_norm < 0:
        raise InputError(f"optimizer.clip_norm={config.clip_norm}: above 0, or 0 for none")
    rate = make_schedule(config, total_steps)
    tx = make(rate, config.weight_decay, **{name: config[name] for name in own if name in config})
    if config.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    if frozen is None or not any(jax.tree.leaves(frozen)):
        return tx
    labels = jax.tree.map(lambda still: "frozen" if still else "trained", frozen)
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def frozen_parameters(patterns: Sequence[str], params: Any) -> Any:
    """Which parameters stay as they are: a tree of booleans.

    Args:
        patterns: regular expressions, searched for in paths such as `down_0/resnet_0/conv1/kernel`.
        params: the parameters or their shapes.

    Raises:
        InputError: a pattern is no regular expression or is found nowhere, or nothing is left to
            train.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    found = [False] * len(names)
    for pattern in patterns:
        try:
            hits = [re.search(pattern, name) is not None for name in names]
        except re.error as error:
            raise InputError(f"config.frozen: {pattern!r} is no pattern ({error})") from None
        if not any(hits):
            raise InputError(
                f"config.frozen: {pattern!r} is found in no parameter's path, such as {names[0]!r}"
            )
        found = [one or other for one, other in zip(found, hits, strict=True)]
    if all(found):
        raise InputError("config.frozen leaves no parameter to train")
    return jax.tree_util.tree_unflatten(treedef, found)


def stop_frozen(params: Any, frozen: Any) -> Any:
    """Parameters without gradients where they are frozen: the backward pass is spared them."""
    stop = lambda still, leaf: jax.lax.stop_gradient(leaf) if still else leaf  # noqa: E731
    return jax.tree.map(stop, frozen, params)


def _is_kernel(params: optax.Params) -> optax.Params:
    """Biases and normalisation scales are vectors; they are not decayed."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
