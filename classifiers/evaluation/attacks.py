"""Adversarial images in the L-infinity ball: fast gradient sign method, projected gradient descent.

Epsilons are in grey levels of 0 to 255: 4 is the 4/255 of images in [0, 1].
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8

from classifiers.evaluation.scores import Judge, Variables
from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.images import to_float
from launch.runtime.types import Array

# Grey levels per unit of images in [-1, 1].
_LEVELS_PER_UNIT = 127.5
_FIELDS = {
    "fgsm": ("kind", "epsilon"),
    "pgd": ("kind", "epsilon", "steps", "step_size", "seed"),
}


@dataclasses.dataclass(frozen=True)
class Attack:
    """How images are changed."""

    kind: str  # 'fgsm' or 'pgd'
    epsilon: float  # most change of a pixel, in grey levels of 255
    steps: int = 0  # of pgd
    step_size: float = 0.0  # change of a pixel in a step of pgd, in grey levels of 255
    seed: int = 0  # of pgd's random start in the ball


def make(where: str, spec: Fields) -> Attack:
    """The attack of a config's section `where`; raises InputError for a wrong field."""
    kind = spec.get("kind")
    if kind not in _FIELDS:
        raise InputError(
            f"{where}.kind must be one of {', '.join(map(repr, _FIELDS))}, got {kind!r}"
        )
    names = _FIELDS[kind]
    if unknown := sorted(set(spec) - set(names)):
        raise InputError(f"{where} has no field {unknown[0]!r}; use {', '.join(names)} for {kind}")
    for name in names:
        value = spec.get(name, 0 if name == "seed" else None)
        if name == "kind":
            continue
        whole = name in ("steps", "seed")  # bool is an int in Python, hence the check below
        number = isinstance(value, int) if whole else isinstance(value, int | float)
        if not number or isinstance(value, bool) or not (0 if name == "seed" else 1e-9) <= value:
            number_kind = "a whole number" if whole else "a number of grey levels (of 255)"
            least = "at least 0" if name == "seed" else "above 0"
            raise InputError(f"{where}.{name} must be {number_kind} {least}, got {value!r}")
    if not spec["epsilon"] <= 255:
        raise InputError(f"{where}.epsilon must be at most 255 grey levels, got {spec['epsilon']}")
    return Attack(**spec)


@dataclasses.dataclass(frozen=True)
class StrongestPoints:
    """The strongest point of each image that an attack has seen.

    A wrong prediction is stronger than a right one; of two alike, the one with the higher loss.
    """

    images: Float[Array, "b h w c"]
    loss: Float[Array, " b"]
    correct: Bool[Array, " b"]


jax.tree_util.register_dataclass(StrongestPoints, ["images", "loss", "correct"], [])


def make_attack(
    attack: Attack, judge: Judge
) -> Callable[
    [Variables, UInt8[Array, "b h w c"], Int[Array, " b"], Int[Array, " b"]], StrongestPoints
]:
    """The attack as a function of variables, images, labels and the images' positions in the set.

    What counts is the strongest of all points on the way, so that PGD never finds less than FGSM of
    the same epsilon, and FGSM never less than no attack. Points are real numbers and are not
    rounded to grey levels. `judge` gives predictions and losses of images in [-1, 1], see
    `scores.make_judge`.
    """
    epsilon, step_size = (
        jnp.float32(x / _LEVELS_PER_UNIT) for x in (attack.epsilon, attack.step_size)
    )

    def loss_of(x: Array, variables: Variables, labels: Array) -> tuple[Array, tuple]:
        scores = judge(variables, x, labels)
        return jnp.sum(scores["loss"]), (scores["loss"], scores["predicted"] == labels)

    @jax.jit
    def look(
        variables: Variables, x: Array, labels: Array, best: StrongestPoints
    ) -> StrongestPoints:
        return _stronger(best, StrongestPoints(x, *loss_of(x, variables, labels)[1]))

    @jax.jit
    def climb(
        variables: Variables,
        clean: Array,
        x: Array,
        labels: Array,
        best: StrongestPoints,
        size: Array,
    ) -> tuple[Array, StrongestPoints]:
        # One pass gives the gradient for the next point and the scores of this one. The sum over
        # the batch keeps each image's gradient its own.
        slope, seen = jax.grad(loss_of, has_aux=True)(x, variables, labels)
        x_next = _project(x + size * jnp.sign(slope), clean, epsilon)
        return x_next, _stronger(best, StrongestPoints(x, *seen))

    def run(
        variables: Variables, images: Array, labels: Array, positions: Array
    ) -> StrongestPoints:
        # 1. The clean image, and x + epsilon sign(grad L): Goodfellow et al. 2015, section 4.
        clean = to_float(images)
        x, best = climb(variables, clean, clean, labels, _weakest(clean, labels), epsilon)
        best = look(variables, x, labels, best)
        if attack.kind == "fgsm":
            return best
        # 2. PGD: from a random point in the ball, steps of step_size sign(grad L), each projected
        # back (Madry et al. 2018, section 2.1).
        x = _start(clean, positions, epsilon, attack.seed)
        # No lax loop: inside one, gradients of convolutions are slow on a CPU.
        for _ in range(attack.steps):
            x, best = climb(variables, clean, x, labels, best, step_size)
        return look(variables, x, labels, best)

    return run


def _project(x: Array, clean: Array, epsilon: Array) -> Array:
    """Back into the ball around the clean image, and into the range of pixels."""
    return jnp.clip(x, jnp.maximum(clean - epsilon, -1), jnp.minimum(clean + epsilon, 1))


@jax.jit
def _start(clean: Array, positions: Array, epsilon: Array, seed: Int[Array, ""]) -> Array:
    """A random point in the ball of each image."""
    # Keyed by the image's position in the set: not by batch size, devices or resuming.
    keys = jax.vmap(lambda position: jax.random.fold_in(jax.random.key(seed), position))(positions)
    draw = lambda key: jax.random.uniform(key, clean.shape[1:], minval=-1, maxval=1)  # noqa: E731
    return _project(clean + epsilon * jax.vmap(draw)(keys), clean, epsilon)


def _weakest(clean: Array, labels: Array) -> StrongestPoints:
    """A start that every point is stronger than: predicted right, at a loss of -inf."""
    loss = jnp.full_like(labels, -jnp.inf, jnp.float32)
    return StrongestPoints(clean, loss, jnp.full_like(labels, True, bool))


def _stronger(a: StrongestPoints, b: StrongestPoints) -> StrongestPoints:
    better = jnp.where(a.correct == b.correct, b.loss > a.loss, a.correct)
    images = jnp.where(better[:, None, None, None], b.images, a.images)
    loss = jnp.where(better, b.loss, a.loss)
    return StrongestPoints(images, loss, jnp.where(better, b.correct, a.correct))
