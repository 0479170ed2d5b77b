"""UniPC (Zhao et al. 2023): each prediction also corrects the step that led to it."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Int

from imagen_ft.diffusion.dpm_solver import Memory, Number, first_order, phi
from imagen_ft.diffusion.forward_process import Image
from imagen_ft.diffusion.samplers import Denoise, Interval, Prediction, Sampler
from imagen_ft.diffusion.schedule import alpha_sigma
from imagen_ft.diffusion.spacing import LOGSNR_MIN
from launch.runtime.types import Array

SOLVER_TYPES = ("bh1", "bh2")


@dataclasses.dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC in terms of x_0; one evaluation a step, which the corrector uses a second time.

    With the corrector the order of accuracy is one more than `order`. Orders rise over the first
    steps and fall over the last ones.

    Attributes:
        num_steps: network evaluations.
        order: 1, 2 or 3, of the predictor.
        solver_type: B(h) of the paper: h ('bh1') or exp(h) - 1 ('bh2').
        spacing: see `spacing.sampling_times`.
        logsnr_min: see `Sampler`.
    """

    num_steps: int
    order: int = 2
    solver_type: str = "bh2"
    spacing: str = "trailing"
    logsnr_min: float = LOGSNR_MIN

    def initialise(self, x: Image) -> tuple[Image, Image, Memory]:
        """See `Sampler`: x, what a first-order step had made of it, and the memory."""
        return x, x, Memory.empty(x, self.order)

    def step(
        self, carry: tuple[Image, Image, Memory], denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[tuple[Image, Image, Memory], Prediction]:
        """See `Sampler`."""
        predicted, base, memory = carry
        prediction = denoise(predicted, interval.t)
        x0, logsnr_t, logsnr_s = prediction.x0, interval.logsnr_t, interval.logsnr_s
        order = jnp.minimum(jnp.minimum(self.order, interval.step), memory.taken + 1)
        order_before = jnp.minimum(jnp.minimum(self.order, interval.step + 1), memory.taken)
        corrected = base + alpha_sigma(logsnr_t)[0] * self._corrector(x0, memory, order_before)
        x = jnp.where(memory.taken > 0, corrected, predicted)
        h = 0.5 * (logsnr_s - logsnr_t)
        base = first_order(x, x0, logsnr_t, logsnr_s)
        predicted = base + alpha_sigma(logsnr_s)[0] * self._predictor(x0, h, memory, order)
        predicted = jnp.where(interval.last, x0, predicted)
        return (predicted, base, memory.after(x0, h)), prediction

    def finalise(self, carry: tuple[Image, Image, Memory]) -> Image:
        """See `Sampler`."""
        return carry[0]

    def _predictor(self, x0: Image, h: Number, memory: Memory, order: Int[Array, ""]) -> Image:
        """What is added to a first-order step of length h, but for alpha (UniP, algorithm 2)."""
        earlier = memory.predictions[: self.order - 1]
        nodes = _nodes(memory.gaps[: self.order - 1], h)
        return self._sum(x0, nodes, earlier, h, order - 1)

    def _corrector(self, x0: Image, memory: Memory, order: Int[Array, ""]) -> Image:
        """The same of the step that led here, whose end is known by now (UniC, algorithm 1)."""
        began, *earlier = memory.predictions
        h = memory.gaps[0]
        nodes = [jnp.ones_like(h), *_nodes(memory.gaps[1:], h)]
        return self._sum(began, nodes, [x0, *earlier], h, order)

    def _sum(
        self,
        x0: Image,
        nodes: Sequence[Number],
        others: Sequence[Image],
        h: Number,
        count: Int[Array, ""],
    ) -> Image:
        """A polynomial through x_0 and its first neighbours, integrated (Eq. 5 to 7).

        Args:
            x0: the prediction where the step begins.
            nodes: where the others are, in steps from there.
            others: predictions.
            h: length of the step, in lambda.
            count: how many of the others there are.
        """
        total = jnp.zeros_like(x0)
        weights = [self._weights(nodes[:number], h) for number in range(1, len(nodes) + 1)]
        for index, (node, other) in enumerate(zip(nodes, others, strict=True)):
            weight = jnp.zeros_like(h)
            for number in range(index, len(nodes)):
                weight = jnp.where(count == number + 1, weights[number][index], weight)
            total = total + weight / node * (other - x0)
        return total

    def _weights(self, nodes: Sequence[Number], h: Number) -> list[Number]:
        """Of the differences: they integrate 1, r, r^2, ... as exp(-h) and its phi functions do."""
        if len(nodes) == 1:
            # The paper's choice of a half, which keeps the order; here B(h) makes a difference.
            return [0.5 * h * (phi(1, -h) if self.solver_type == "bh2" else 1.0)]
        moments = [math.factorial(k) * h * phi(k + 1, -h) for k in range(1, len(nodes) + 1)]
        return [_lagrange(index, nodes, moments) for index in range(len(nodes))]


def _nodes(gaps: Sequence[Number], h: Number) -> list[Number]:
    """Where earlier predictions are, in steps of length h from the present one."""
    return [-sum(gaps[: number + 1], jnp.zeros_like(h)) / h for number in range(len(gaps))]


def _lagrange(index: int, nodes: Sequence[Number], moments: Sequence[Number]) -> Number:
    """The polynomial that is 1 at one node and 0 at the others, with moments for its powers."""
    coefficients, scale = [jnp.ones_like(nodes[index])], jnp.ones_like(nodes[index])
    for number, node in enumerate(nodes):
        if number != index:
            zero = jnp.zeros_like(node)
            raised, lowered = [zero, *coefficients], [*coefficients, zero]
            coefficients = [a - node * b for a, b in zip(raised, lowered, strict=True)]
            scale = scale * (nodes[index] - node)
    return sum((c * m for c, m in zip(coefficients, moments, strict=True)), 0.0 * scale) / scale
