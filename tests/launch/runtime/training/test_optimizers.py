"""Optimisers against PyTorch's, schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from ml_collections import ConfigDict

from imagen_ft.models import presets
from launch.errors import InputError
from launch.runtime.training.optimizers import (
    frozen_parameters,
    make_optimizer,
    make_schedule,
    stop_frozen,
)

SHAPES = {"kernel": (4, 3), "bias": (3,), "embedding": (1, 2, 3)}
RATE, DECAY = 0.01, 0.2


def config(**changes):
    return ConfigDict(
        dict(
            name="sgd",
            learning_rate=RATE,
            schedule="constant",
            warmup_steps=0,
            weight_decay=0.0 if changes.get("name") in ("adam", "adafactor") else DECAY,
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


def torch_groups(weight_decay, decayed=("kernel", "embedding")):
    """Kernels are decayed, vectors are not."""
    start = {name: torch.tensor(value) for name, value in values(0).items()}
    groups = [
        {"params": [value], "weight_decay": weight_decay if name in decayed else 0.0}
        for name, value in start.items()
    ]
    return start, groups


TORCH = {
    "sgd": (torch.optim.SGD, dict(momentum=0.9, nesterov=True), DECAY),
    "adam": (torch.optim.Adam, {}, 0.0),
    "adamw": (torch.optim.AdamW, {}, DECAY),
}
OWN = {
    "sgd": dict(momentum=0.5, nesterov=False),
    "adam": dict(b1=0.8, b2=0.95, eps=1e-3),
    "adamw": dict(b1=0.8, b2=0.95, eps=1e-3),
}


def torch_train(name, steps, arguments, groups, clip_norm=0.0):
    params, groups = groups
    optimizer = TORCH[name][0](groups, lr=RATE, **arguments)
    for step in range(steps):
        for key, grad in values(step + 1).items():
            params[key].grad = torch.tensor(grad)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(params.values(), clip_norm)
        optimizer.step()
    return params


def same(ours, theirs):
    for key, expected in theirs.items():
        assert np.abs(expected.numpy() - values(0)[key]).max() > 1e-3
        np.testing.assert_allclose(ours[key], expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", TORCH)
def test_against_torch(name, steps, clip_norm, own):
    _, arguments, weight_decay = TORCH[name]
    fields = OWN[name] if own else {}
    if own and name == "sgd":
        arguments = arguments | fields
    elif own:
        arguments = dict(betas=(fields["b1"], fields["b2"]), eps=fields["eps"])
    theirs = torch_train(name, steps, arguments, torch_groups(weight_decay), clip_norm)
    same(
        train(make_optimizer(config(name=name, clip_norm=clip_norm, **fields), 100), steps), theirs
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_not_decayed_against_torch(name):
    groups = torch_groups(DECAY, decayed=("kernel",))
    theirs = torch_train(name, 3, TORCH[name][1], groups)
    same(train(make_optimizer(config(name=name, no_decay=("^embed",)), 100), 3), theirs)


def test_a_pattern_of_no_decay_that_is_found_nowhere():
    tx = make_optimizer(config(name="lamb", no_decay=("pos_embed",)), 100)
    with pytest.raises(InputError, match=r"optimizer\.no_decay: 'pos_embed' matches no parameter"):
        tx.init(values(0))


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
        (dict(schedule="step", boundaries=(2, 5)), [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (
            # From the run's first step on, whatever the warm-up.
            dict(schedule="step", warmup_steps=2, boundaries=(3, 4), factor=0.5),
            [0, 0.5, 1, 0.5, 0.25, 0.25, 0.25],
        ),
        (
            dict(schedule="constant", warmup_steps=4, warmup_from=0.04),
            [0.2, 0.4, 0.6, 0.8, 1, 1, 1],
        ),
    ],
)
def test_schedules(changes, expected):
    schedule = make_schedule(config(learning_rate=0.2, **changes), total_steps=6)
    rates = [float(schedule(step)) for step in range(7)]
    np.testing.assert_allclose(rates, 0.2 * np.array(expected), atol=1e-7)


@pytest.mark.parametrize("no_decay", [(), ("kernel",)])
def test_lamb(no_decay):
    # You et al. 2020, algorithm 2: Adam's direction with decay, scaled to the parameter's norm.
    params, first, second = values(0), dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0)
    for t in (1, 2):
        for name, grad in values(t).items():
            first[name] = 0.9 * first[name] + 0.1 * grad.astype(np.float64)
            second[name] = 0.999 * second[name] + 0.001 * grad.astype(np.float64) ** 2
            update = first[name] / (1 - 0.9**t) / (np.sqrt(second[name] / (1 - 0.999**t)) + 1e-6)
            if name == "embedding" or (name == "kernel" and not no_decay):
                update = update + DECAY * params[name]
            ratio = np.linalg.norm(params[name]) / np.linalg.norm(update)
            params[name] = params[name] - RATE * ratio * update
    ours = train(make_optimizer(config(name="lamb", no_decay=no_decay), 100), 2)
    for name, expected in params.items():
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-6)


def test_frozen_parameters_stay_and_cost_nothing():
    frozen = frozen_parameters(["^bia", "^emb"], values(0))
    assert frozen == {"kernel": False, "bias": True, "embedding": True}
    # The kernel is clipped as if it were alone.
    tx = make_optimizer(config(name="adamw", clip_norm=0.5), 100, frozen)
    ours = train(tx, 2)
    for still in ("bias", "embedding"):
        np.testing.assert_array_equal(ours[still], values(0)[still])
    alone = make_optimizer(config(name="adamw", clip_norm=0.5), 100)
    params, state = {"kernel": jnp.asarray(values(0)["kernel"])}, None
    state = alone.init(params)
    for step in (1, 2):
        updates, state = alone.update({"kernel": values(step)["kernel"]}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(ours["kernel"], params["kernel"])
    kept = sum(leaf.size for leaf in jax.tree.leaves(tx.init(values(0))))
    assert kept == sum(leaf.size for leaf in jax.tree.leaves(alone.init(params)))

    def loss(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(stop_frozen(params, frozen)))

    grads = jax.grad(loss)(values(0))
    assert not grads["bias"].any() and not grads["embedding"].any() and grads["kernel"].all()


def test_nothing_frozen():
    frozen = frozen_parameters((), values(0))
    assert not any(frozen.values()) and frozen.keys() == SHAPES.keys()
    plain, ours = (make_optimizer(config(), 100, given) for given in (None, frozen))
    assert jax.tree.structure(plain.init(values(0))) == jax.tree.structure(ours.init(values(0)))


def test_adafactors_state_is_small():
    shapes = presets.parameter_shapes("imagen_base64")
    sizes = {}
    for name in ("adafactor", "adam"):
        state = jax.eval_shape(make_optimizer(config(name=name), 100).init, shapes)
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes["adam"] > 4e9 and sizes["adafactor"] < 0.01 * sizes["adam"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["bias", "weight"], r"config\.frozen: 'weight' matches no parameter"),
        (
            ["("],
            r"config\.frozen: '\(' must be a valid regular expression \(missing \)",
        ),
        (["bias", "kern", "emb"], "leaves no parameter to train"),
    ],
)
def test_patterns_that_freeze_nothing_or_all(patterns, message):
    with pytest.raises(InputError, match=message):
        frozen_parameters(patterns, values(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name="lion"), r"optimizer\.name must be one of 'adafactor', 'adam'"),
        (dict(schedule="linear"), r"optimizer\.schedule must be one of 'constant'"),
        (dict(schedule="step"), r"boundaries must be increasing step numbers .*got \(\)"),
        (
            dict(schedule="step", boundaries=(4, 3)),
            r"boundaries must be increasing step numbers .*got \(4, 3\)",
        ),
        (dict(schedule="step", boundaries=(2,), warmup_steps=2), "above warmup_steps=2"),
        (
            dict(schedule="cosine", boundaries=(3,)),
            r"optimizer\.boundaries needs optimizer\.schedule='step'",
        ),
        (dict(factor=0.5), r"optimizer\.factor needs optimizer\.schedule='step'"),
        (dict(name="adam", no_decay=("x",)), r"'adam' has no field 'no_decay'; use name,"),
        (dict(b1=0.9), r"optimizer 'sgd' has no field 'b1'; use name, .*, momentum"),
        (
            dict(name="adam", weight_decay=0.1),
            r"weight_decay must be 0 for 'adam', got 0\.1; set it to 0",
        ),
        (
            dict(name="adafactor", weight_decay=0.1),
            r"weight_decay must be 0 for 'adafactor', got 0\.1",
        ),
    ],
)
def test_what_no_optimizer_has(changes, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(config(**changes), 10)
