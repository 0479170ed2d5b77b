"""Tunes class weights on the features of a frozen tower (He et al. 2023, section 3)."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Float, Int

from classifiers.models.clip import products, unit
from launch.errors import InputError
from launch.runtime.training.optimizers import make_optimizer
from launch.runtime.types import Array

STRATEGIES = ("mix", "real_first", "synthetic_first")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A weighted sum of the cross-entropies with labels and with a teacher."""

    hard: float  # weight of the labels
    soft: float  # weight of the teacher, which is the head before tuning
    temperature: float  # the teacher's logits are divided by it
    scale: float  # products of features and weights times this are logits

    def __call__(
        self,
        weights: Float[Array, "classes d"],
        teacher: Float[Array, "classes d"],
        features: Float[Array, "b d"],
        labels: Int[Array, " b"],
        before: Float[Array, "b d"] | None = None,
    ) -> Float[Array, ""]:
        """The mean over examples; features are of unit length.

        `teacher` are the class weights before tuning; it sees `before`, the features before tuning,
        where the tower has changed since.
        """
        before = features if before is None else before
        log_p = jax.nn.log_softmax(self.scale * products(features, weights))
        targets = jax.nn.softmax(self.scale * products(before, teacher) / self.temperature)
        hard = -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()
        # He et al. 2023, section 3.1: -sum softmax(teacher / T) log softmax(student); only the
        # teacher is softened.
        soft = -(targets * log_p).sum(axis=1).mean()
        return self.hard * hard + self.soft * soft


@dataclasses.dataclass(frozen=True)
class Part:
    """Images of one domain, as the tower sees them."""

    features: Float[np.ndarray, "n d"]  # of unit length
    labels: Int[np.ndarray, " n"]
    batch_size: int  # per step; all images where there are fewer
    loss: Loss

    @classmethod
    def make(cls, features: np.ndarray, labels: np.ndarray, batch_size: int, loss: Loss) -> "Part":
        """A part from features of any length."""
        return cls(np.asarray(unit(jnp.asarray(features))), labels, batch_size, loss)

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return -(-len(self.labels) // self.batch_size)

    def order(self, steps: int, rng: np.random.Generator) -> Int[np.ndarray, "steps b"]:
        """Which images each step sees: all once before any twice."""
        size = min(self.batch_size, len(self.labels))
        passes = -(-steps * size // len(self.labels))
        order = np.concatenate([rng.permutation(len(self.labels)) for _ in range(passes)])
        return order[: steps * size].reshape(steps, size)


PartT = TypeVar("PartT", bound=Part)


def check(strategy: str, loss: Loss) -> None:
    """Raises InputError for an unknown strategy or a number out of range."""
    if strategy not in STRATEGIES:
        names = ", ".join(STRATEGIES)
        raise InputError(f"config.strategy must be one of {names}, got {strategy!r}")
    amounts = (loss.hard, loss.soft)
    finite = np.isfinite([*amounts, loss.temperature]).all()
    if not finite or min(amounts) < 0 or not any(amounts) or loss.temperature <= 0:
        raise InputError(
            "config.loss must have hard and soft finite and at least 0, not both 0, and a "
            f"temperature above 0, got {amounts} and {loss.temperature}"
        )


def tune(
    start: Float[np.ndarray, "classes d"],
    parts: Sequence[Part],
    strategy: str,
    optimizer: ml_collections.ConfigDict,
    epochs: int,
    seed: int,
) -> Float[np.ndarray, "classes d"]:
    """Tuned class weights; those of `start` are also the teacher.

    `parts` are real and synthetic images, or one of them. With the strategy 'mix' every step has a
    batch of each and the sum of both losses, and an epoch is one of the larger part. The others
    train on one part for `epochs` epochs, then on the other, each with a schedule of its own.
    """
    teacher: Array = jnp.asarray(start)
    weights = teacher
    for phase, orders in in_phases(parts, strategy, epochs, seed):
        data = tuple((jnp.asarray(part.features), jnp.asarray(part.labels)) for part in phase)
        losses = tuple(part.loss for part in phase)
        rows = tuple(jnp.asarray(order) for order in orders)
        weights = _phase(losses, optimizer, len(rows[0]), weights, teacher, data, rows)
    return np.asarray(weights)


def in_phases(
    parts: Sequence[PartT], strategy: str, epochs: int, seed: int
) -> Iterator[tuple[list[PartT], list[Int[np.ndarray, "steps _"]]]]:
    """The parts of each phase, and the rows of each that its steps see; see `tune`."""
    rng = np.random.default_rng(seed)
    phases = [list(parts)]
    if strategy != "mix" and len(parts) > 1:
        phases = [[part] for part in (parts if strategy == "real_first" else parts[::-1])]
    for phase in phases:
        total = epochs * max(part.steps for part in phase)
        yield phase, [part.order(total, rng) for part in phase]


def loss_and_gradient(
    losses: Sequence[Loss], weights: Array, teacher: Array, batches: Sequence[tuple[Array, Array]]
) -> tuple[Float[Array, ""], Float[Array, "classes d"]]:
    """Loss and gradient of one step; `losses` and `batches` belong together by position."""

    def total(weights: Array) -> Array:
        values = (
            loss(weights, teacher, *batch) for loss, batch in zip(losses, batches, strict=True)
        )
        return functools.reduce(jnp.add, values)

    return jax.value_and_grad(total)(weights)


def _phase(
    losses: tuple[Loss, ...],
    optimizer: ml_collections.ConfigDict,
    total: int,
    weights: Array,
    teacher: Array,
    data: tuple[tuple[Array, Array], ...],
    orders: tuple[Array, ...],
) -> Array:
    tx = make_optimizer(optimizer, total)

    # A phase is one program: features fit in memory, and single steps are too small to dispatch.
    @jax.jit
    def run(weights: Array, teacher: Array, data: tuple, orders: tuple) -> Array:
        def step(state: tuple, rows: tuple) -> tuple[tuple, None]:
            weights, opt_state = state
            batches = [(x[r], y[r]) for (x, y), r in zip(data, rows, strict=True)]
            _, gradient = loss_and_gradient(losses, weights, teacher, batches)
            updates, opt_state = tx.update({"kernel": gradient}, opt_state, {"kernel": weights})
            return (optax.apply_updates({"kernel": weights}, updates)["kernel"], opt_state), None

        state = weights, tx.init({"kernel": weights})
        return jax.lax.scan(step, state, orders)[0][0]

    return run(weights, teacher, data, orders)
