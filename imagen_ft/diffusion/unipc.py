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
    """UniPC for networks that predict x_0; the corrector reuses the evaluation of the next step.

    With the corrector the order of accuracy is `order` + 1. Orders rise over the first steps and
    fall over the last.
    """

    num_steps: int  # network evaluations
    order: int = 2  # 1, 2 or 3, of the predictor
    solver_type: str = "bh2"  # B(h) of the paper: h ('bh1') or exp(h) - 1 ('bh2')
    spacing: str = "trailing"
    logsnr_min: float = LOGSNR_MIN

    def initialise(self, x: Image) -> tuple[Image, Image, Memory]:
        """See `Sampler`; (x, the first-order step that led to it, memory)."""
        return x, x, Memory.empty(x, self.order)

    def step(
        self, carry: tuple[Image, Image, Memory], denoise: Denoise, noise: Image, interval: Interval
    ) -> tuple[tuple[Image, Image, Memory], Prediction]:
        """See `Sampler`."""
        predicted, base, memory = carry
        prediction = denoise(predicted, interval.t)
        x0, logsnr_t, logsnr_s = prediction.x0, interval.logsnr_t, interval.logsnr_s
        # 1. The orders of this step and of the one before, limited by memory and by what is left.
        order = jnp.minimum(jnp.minimum(self.order, interval.step), memory.taken + 1)
        order_before = jnp.minimum(jnp.minimum(self.order, interval.step + 1), memory.taken)
        # 2. Correct the step that led here, with the prediction at its end (UniC).
        corrected = base + alpha_sigma(logsnr_t)[0] * self._corrector(x0, memory, order_before)
        x = jnp.where(memory.taken > 0, corrected, predicted)
        # 3. Predict the next images from the corrected ones (UniP).
        h = 0.5 * (logsnr_s - logsnr_t)
        base = first_order(x, x0, logsnr_t, logsnr_s)
        predicted = base + alpha_sigma(logsnr_s)[0] * self._predictor(x0, h, memory, order)
        predicted = jnp.where(interval.last, x0, predicted)
        return (predicted, base, memory.after(x0, h)), prediction

    def finalise(self, carry: tuple[Image, Image, Memory]) -> Image:
        """See `Sampler`."""
        return carry[0]

    def _predictor(self, x0: Image, h: Number, memory: Memory, order: Int[Array, ""]) -> Image:
        # Added to a first-order step of length h, up to the factor alpha (UniP, algorithm 2).
        earlier = memory.predictions[: self.order - 1]
        nodes = _nodes(memory.gaps[: self.order - 1], h)
        return self._sum(x0, nodes, earlier, h, order - 1)

    def _corrector(self, x0: Image, memory: Memory, order: Int[Array, ""]) -> Image:
        # The same for the step that led here, whose end, node 1, is now known (UniC, algorithm 1).
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
        """Integrates a polynomial through x_0 and `count` others (Zhao et al. 2023, Eq. 5 to 7)."""
        # Nodes are where the others lie, in steps of length h from x_0's place.
        total = jnp.zeros_like(x0)
        # `count` is traced: the weights of every possible count are computed (scalars, so cheap),
        # and the right ones chosen.
        weights = [self._weights(nodes[:number], h) for number in range(1, len(nodes) + 1)]
        for index, (node, other) in enumerate(zip(nodes, others, strict=True)):
            weight = jnp.zeros_like(h)
            for number in range(index, len(nodes)):
                weight = jnp.where(count == number + 1, weights[number][index], weight)
            # D_m / r_m of the paper, with D_m the difference of the predictions.
            total = total + weight / node * (other - x0)
        return total

    def _weights(self, nodes: Sequence[Number], h: Number) -> list[Number]:
        """Weights of the differences, such that powers r^k integrate exactly."""
        if len(nodes) == 1:
            # The paper sets one weight to 1/2, which keeps the order; only here does B(h) matter.
            return [0.5 * h * (phi(1, -h) if self.solver_type == "bh2" else 1.0)]
        # h times the integral of r^k exp(-h (1 - r)) over r in [0, 1] is k! h phi_k+1(-h).
        moments = [math.factorial(k) * h * phi(k + 1, -h) for k in range(1, len(nodes) + 1)]
        return [_lagrange(index, nodes, moments) for index in range(len(nodes))]


def _nodes(gaps: Sequence[Number], h: Number) -> list[Number]:
    """Where earlier predictions lie, in steps of length h from the current one: negative."""
    return [-sum(gaps[: number + 1], jnp.zeros_like(h)) / h for number in range(len(gaps))]


def _lagrange(index: int, nodes: Sequence[Number], moments: Sequence[Number]) -> Number:
    """Lagrange's basis polynomial for one node, with moments in place of its powers."""
    coefficients, scale = [jnp.ones_like(nodes[index])], jnp.ones_like(nodes[index])
    for number, node in enumerate(nodes):
        if number != index:
            zero = jnp.zeros_like(node)
            # Times (r - node); coefficients start with the lowest power.
            raised, lowered = [zero, *coefficients], [*coefficients, zero]
            coefficients = [a - node * b for a, b in zip(raised, lowered, strict=True)]
            scale = scale * (nodes[index] - node)
    return sum((c * m for c, m in zip(coefficients, moments, strict=True)), 0.0 * scale) / scale
