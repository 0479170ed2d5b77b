"""Steps of every recipe's optimiser against PyTorch's: rates, decay and its mask, clipping."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from launch.runtime.training.optimizers import make_optimizer, make_schedule
from tests.configs.tables import RECIPES

SHAPES = {
    "block/kernel": (4, 3),
    "block/bias": (3,),
    "norm/scale": (3,),
    "positions": (1, 2, 3),
    "token": (1, 1, 3),
}
STEPS, WARMUP, TOTAL, DROPS = 9, 3, 10, (5, 7)


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def short(name):
    """The recipe's optimiser, with a schedule of ten steps."""
    config = importlib.import_module(f"configs.imagenet.{name}").get_config().optimizer
    config.warmup_steps = 0 if name == "deit_b_384" else WARMUP
    if "boundaries" in config:
        config.boundaries = DROPS
    return config


def rate(config, step):
    """The learning rate, from its definition."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if step < warmup:
        first = config.get("warmup_from", 0.0)
        return first + (peak - first) * step / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "step":
        return peak * 0.1 ** sum(step >= drop for drop in DROPS)
    return peak * (1 + math.cos(math.pi * (step - warmup) / (TOTAL - warmup))) / 2


def decayed(name, config):
    """Kernels are; in DeiT neither positions nor tokens, in a plain ViT whatever is learned."""
    return len(SHAPES[name]) > 1 and (name == "block/kernel" or not config.get("no_decay"))


class Moments(torch.optim.Optimizer):
    """Adam's bias-corrected moments; what is made of them is the subclass's."""

    moment = torch.float32

    def __init__(self, groups, lr):
        super().__init__(groups, dict(lr=lr, weight_decay=0.0))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.setdefault(p, dict(t=0, m=torch.zeros_like(p), v=0.0))
                t = state["t"] = state["t"] + 1
                m = 0.9 * state["m"].float() + 0.1 * p.grad
                v = state["v"] = 0.999 * state["v"] + 0.001 * p.grad**2
                state["m"] = m.to(self.moment)
                m, v = m / (1 - 0.9**t), v / (1 - 0.999**t)
                p -= group["lr"] * self.direction(m, v.sqrt(), p, group["weight_decay"])


class Lamb(Moments):
    """You et al. 2020, algorithm 2, with the norm itself as phi."""

    def direction(self, m, root, p, decay):
        update = m / (root + 1e-6) + decay * p
        return p.norm() / update.norm() * update


class HalfAdamW(Moments):
    """Loshchilov & Hutter 2019, algorithm 2; the first moment is kept in bfloat16."""

    moment = torch.bfloat16

    def direction(self, m, root, p, decay):
        return m / (root + 1e-8) + decay * p


def peer_of(config, groups):
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=config.nesterov)
    if config.name == "lamb":
        return Lamb(groups, lr=1.0)
    return (HalfAdamW if config.get("mu_dtype") else torch.optim.AdamW)(groups, lr=1.0)


def torch_train(config):
    params = {name: torch.tensor(value) for name, value in draw(0).items()}
    groups = [
        dict(params=[p], weight_decay=config.weight_decay if decayed(name, config) else 0.0)
        for name, p in params.items()
    ]
    peer = peer_of(config, groups)
    for step in range(STEPS):
        for name, grad in draw(step + 1).items():
            params[name].grad = torch.tensor(grad)
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(params.values(), config.clip_norm)
        for group in peer.param_groups:
            group["lr"] = rate(config, step)
        peer.step()
    return params


@pytest.mark.parametrize("name", RECIPES)
def test_steps(name):
    config = short(name)
    tx = make_optimizer(config, TOTAL)
    params = jax.tree.map(jnp.asarray, draw(0))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(STEPS):
        updates, state = update(draw(step + 1), state, params)
        params = optax.apply_updates(params, updates)
    for key, expected in torch_train(config).items():
        moved = np.abs(expected.numpy() - draw(0)[key]).max()
        error = np.abs(np.asarray(params[key]) - expected.numpy()).max()
        # Of what bfloat16 holds; and DeiT-B at 384 px moves by 5e-6 a step, which is little of one.
        least = 3e-2 if config.get("mu_dtype") else 1e-5
        assert moved > 0 and error <= max(least * moved, 1e-6), key


@pytest.mark.parametrize("name", RECIPES)
def test_rates(name):
    config = short(name)
    schedule = make_schedule(config, TOTAL)
    for step in range(TOTAL):
        expected = pytest.approx(rate(config, step), rel=1e-5, abs=1e-9 * config.learning_rate)
        assert float(schedule(step)) == expected
