"""Optimisers against PyTorch's, schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from ml_collections import ConfigDict

from input_pipeline.files import InputError
from launch.runtime.optimizers import make_optimizer, make_schedule

SHAPES = {"kernel": (4, 3), "bias": (3,)}
RATE, DECAY = 0.01, 0.2


def config(**changes):
    return ConfigDict(
        dict(
            name="sgd",
            learning_rate=RATE,
            schedule="constant",
            warmup_steps=0,
            weight_decay=DECAY,
            clip_norm=0.0,
        )
        | changes
    )


def values(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def train(tx, steps):
    params = jax.tree.map(jnp.asarray, values(0))
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(values(step + 1), state, params)
        params = optax.apply_updates(params, updates)
    return params


def torch_groups(weight_decay):
    """Kernels are decayed, vectors are not."""
    start = {name: torch.tensor(value) for name, value in values(0).items()}
    groups = [
        {"params": [start["kernel"]], "weight_decay": weight_decay},
        {"params": [start["bias"]], "weight_decay": 0.0},
    ]
    return start, groups


TORCH = {
    "sgd": (torch.optim.SGD, dict(momentum=0.9, nesterov=True), DECAY),
    "adam": (torch.optim.Adam, {}, 0.0),
    "adamw": (torch.optim.AdamW, {}, DECAY),
}


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", TORCH)
def test_against_torch(name, steps, clip_norm):
    kind, arguments, weight_decay = TORCH[name]
    params, groups = torch_groups(weight_decay)
    optimizer = kind(groups, lr=RATE, **arguments)
    for step in range(steps):
        for key, grad in values(step + 1).items():
            params[key].grad = torch.tensor(grad)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(params.values(), clip_norm)
        optimizer.step()
    ours = train(make_optimizer(config(name=name, clip_norm=clip_norm), 100), steps)
    for key, theirs in params.items():
        assert np.abs(theirs.numpy() - values(0)[key]).max() > 1e-3
        np.testing.assert_allclose(ours[key], theirs.numpy(), rtol=0, atol=1e-6)


def test_adafactor_on_small_arrays():
    # Shazeer & Stern 2018, algorithm 5 without factors: beta_2 of step t is 1 - t^-0.8,
    # and an update whose root mean square exceeds 1 is scaled down to that.
    params, second = values(0), dict.fromkeys(SHAPES, 0.0)
    for t in (1, 2):
        for name, grad in values(t).items():
            beta = 1 - t**-0.8
            second[name] = beta * second[name] + (1 - beta) * grad.astype(np.float64) ** 2
            update = grad / np.sqrt(second[name])
            update /= max(1.0, np.sqrt(np.mean(update**2)))
            params[name] = params[name] - RATE * update
        ours = train(make_optimizer(config(name="adafactor"), 100), t)
        for name, expected in params.items():
            np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-6)


def test_adafactor_keeps_rows_and_columns_of_large_arrays():
    tx = make_optimizer(config(name="adafactor"), 100)
    shape = (128, 130)
    params = {"kernel": jnp.ones(shape)}
    state = tx.init(params)
    assert max(leaf.size for leaf in jax.tree.leaves(state)) == 130
    grad = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    updates, _ = tx.update({"kernel": grad}, state, params)
    square = np.square(grad, dtype=np.float64)
    rows, columns = square.mean(axis=1), square.mean(axis=0)
    expected = -RATE * grad / np.sqrt(np.outer(rows, columns) / rows.mean())
    expected /= max(1.0, np.sqrt(np.mean((expected / RATE) ** 2)))
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5, atol=1e-7)


def test_the_optimizer_follows_the_schedule():
    tx = make_optimizer(config(schedule="cosine", warmup_steps=2, weight_decay=0.0), 6)
    np.testing.assert_array_equal(train(tx, 1)["kernel"], values(0)["kernel"])  # rate 0
    assert np.abs(train(tx, 2)["kernel"] - values(0)["kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(schedule="constant"), [1, 1, 1, 1, 1, 1, 1]),
        (dict(schedule="constant", warmup_steps=4), [0, 0.25, 0.5, 0.75, 1, 1, 1]),
        (
            dict(schedule="cosine"),
            [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0],  # (1 + cos(pi k / 6)) / 2
        ),
        (dict(schedule="cosine", warmup_steps=2), [0, 0.5, 1, 0.8535534, 0.5, 0.1464466, 0]),
        (dict(schedule="cosine", warmup_steps=6), [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
    ],
)
def test_schedules(changes, expected):
    schedule = make_schedule(config(learning_rate=0.2, **changes), total_steps=6)
    rates = [float(schedule(step)) for step in range(7)]
    np.testing.assert_allclose(rates, 0.2 * np.array(expected), atol=1e-7)


def test_unknown_names():
    with pytest.raises(InputError, match=r"optimizer\.name='lion': known are 'adafactor', 'adam'"):
        make_optimizer(config(name="lion"), 10)
    with pytest.raises(InputError, match=r"optimizer\.schedule='step': known are 'constant'"):
        make_optimizer(config(schedule="step"), 10)
