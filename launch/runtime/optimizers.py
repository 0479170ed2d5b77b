"""Optimisers and learning-rate schedules by the names that configs use."""

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


def make_optimizer(
    config: ml_collections.ConfigDict, total_steps: int
) -> optax.GradientTransformation:
    """Builds the optimiser.

    Args:
        config: `name` ('adafactor', 'adam', 'adamw' or 'sgd'), the fields of `make_schedule`,
            `clip_norm` (0: none), `weight_decay` (adamw, sgd; on kernels only).
        total_steps: length of the run.
    """
    rate = make_schedule(config, total_steps)
    decay = optax.add_decayed_weights(config.weight_decay, mask=_is_kernel)
    if config.name == "adafactor":
        # As Imagen trains its base: Adafactor with a given rate, no decay, no first moment.
        # Updates are not scaled by the size of the parameter.
        steps = [optax.adafactor(rate, multiply_by_parameter_scale=False)]
    elif config.name == "adam":
        steps = [optax.adam(rate)]
    elif config.name == "adamw":
        steps = [optax.adamw(rate, weight_decay=config.weight_decay, mask=_is_kernel)]
    elif config.name == "sgd":
        steps = [decay, optax.sgd(rate, momentum=0.9, nesterov=True)]
    else:
        known = "'adafactor', 'adam', 'adamw', 'sgd'"
        raise InputError(f"optimizer.name={config.name!r}: known are {known}")
    if config.clip_norm:
        steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*steps)


def _is_kernel(params: optax.Params) -> optax.Params:
    """Biases and normalisation scales are vectors; they are not decayed."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
