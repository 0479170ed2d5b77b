"""What a student is trained to minimise whose few steps stand for a teacher's many.

Both methods see a network as the clean image that it predicts, and noise as `spacing` has it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from imagen_ft.diffusion.consistency import boundary_time, consistency, deviation
from imagen_ft.diffusion.dpm_solver import first_order
from imagen_ft.diffusion.forward_process import Image, eps_from_x0, per_image
from imagen_ft.diffusion.schedule import Schedule, alpha_sigma
from imagen_ft.diffusion.spacing import LOGSNR_MIN, sampling_times
from launch.errors import InputError
from launch.runtime.types import Array

# (x_t, t) -> clean images, where each image has its own time.
Predict: TypeAlias = Callable[[Image, Float[Array, " b"]], Image]
# By name, of each image: `t`, where it is, and what else a method has to know; others may be there.
Times: TypeAlias = Mapping[str, Array]
WEIGHTINGS = ("truncated_snr", "snr_plus_one")
SOLVERS = ("ddim", "heun")
METRICS = ("l2", "pseudo_huber")


@runtime_checkable
class Distillation(Protocol):
    """A method."""

    @property
    def steps(self) -> int:
        """Of the student, or of the grid that it is trained on."""

    @property
    def target(self) -> str:
        """The moving average whose predictions the student's are compared with; '' is itself."""

    def times(self, schedule: Schedule, u: Float[Array, " b"]) -> dict[str, Float[Array, " b"]]:
        """See `Times`.

        Args:
            schedule: of the noise.
            u: uniform numbers in [0, 1).
        """

    def losses(
        self,
        schedule: Schedule,
        student: Predict,
        teacher: Predict,
        target: Predict,
        x_t: Image,
        times: Times,
    ) -> dict[str, Float[Array, " b"]]:
        """'loss' of each image, to be minimised, and 'simple', its unweighted squared error.

        Args:
            schedule: of the noise.
            student: what is trained.
            teacher: what it is to be like.
            target: the average of the student that `target` names; gradients do not go through it.
            x_t: noisy images.
            times: of these.
        """


@dataclasses.dataclass(frozen=True)
class Progressive:
    """One step of DDIM stands for two of a teacher (Salimans and Ho 2022, algorithm 2).

    Both begin at the last time ('trailing'), and what they predict in their last step is the image.

    Attributes:
        steps: of the student.
        teacher_steps: twice as many; or as many, where the student learns to predict the same in
            another form.
        weighting: of the squared error of x_0: max(SNR, 1) or SNR + 1, which is that of v (section
            4, and appendix B).
    """

    steps: int
    teacher_steps: int
    weighting: str = "truncated_snr"
    target: str = dataclasses.field(default="", init=False)

    def times(self, schedule: Schedule, u: Float[Array, " b"]) -> dict[str, Float[Array, " b"]]:
        """See `Distillation`: where a student's step begins (t), its middle and its end (s)."""
        grid = jnp.asarray(self.grid(schedule), u.dtype)
        stride = self.teacher_steps // self.steps
        first = stride * _index(u, self.steps)
        return {"t": grid[first], "middle": grid[first + stride - 1], "s": grid[first + stride]}

    def grid(self, schedule: Schedule) -> Float[np.ndarray, " {self.teacher_steps}+1"]:
        """Where the teacher's steps begin and end.

        Raises:
            InputError: the schedule has fewer steps.
        """
        return sampling_times(schedule, self.teacher_steps, "trailing")

    def losses(
        self,
        schedule: Schedule,
        student: Predict,
        teacher: Predict,
        target: Predict,
        x_t: Image,
        times: Times,
    ) -> dict[str, Float[Array, " b"]]:
        """See `Distillation`."""
        logsnr = schedule.logsnr(times["t"])
        goal = jax.lax.stop_gradient(self.goal(schedule, teacher, x_t, times))
        simple = jnp.mean(jnp.square(student(x_t, times["t"]) - goal), axis=(1, 2, 3))
        weight = jnp.exp(jnp.maximum(logsnr, 0.0))
        if self.weighting == "snr_plus_one":
            weight = 1.0 + jnp.exp(logsnr)
        return {"loss": weight * simple, "simple": simple}

    def goal(self, schedule: Schedule, teacher: Predict, x_t: Image, times: Times) -> Image:
        """The x_0 with which one step from t comes to where the teacher's come.

        (x_s - r x_t) / (alpha_s - r alpha_t) with r = sigma_s / sigma_t (Salimans and Ho 2022,
        algorithm 2). At s = 0 that is x_s, with which sampling ends.
        """
        t, middle, s = times["t"], times["middle"], times["s"]
        x0 = teacher(x_t, t)
        if self.teacher_steps == self.steps:
            return x0
        x_middle = ddim_step(schedule, x_t, x0, t, middle)
        x0 = teacher(x_middle, middle)
        x_s = ddim_step(schedule, x_middle, x0, middle, s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            alpha_sigma(per_image(schedule.logsnr(time))) for time in (t, s)
        )
        ratio = sigma_s / sigma_t
        return jnp.where(per_image(s) > 0, (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t), x0)


@dataclasses.dataclass(frozen=True)
class Consistency:
    """All of a trajectory predict its first point (Song et al. 2023, algorithm 2).

    Attributes:
        steps: of the grid of noise levels (Karras et al. 2022, Eq. 5), N of the paper.
        solver: of the teacher's step from one level to the next: 'ddim', which is Euler's step of
            what has constant scale, or 'heun'.
        metric: 'l2', the squared error, or 'pseudo_huber' (Song and Dhariwal 2023, Eq. 7).
        target: see `Distillation`.
    """

    steps: int
    solver: str = "heun"
    metric: str = "pseudo_huber"
    target: str = ""

    def times(self, schedule: Schedule, u: Float[Array, " b"]) -> dict[str, Float[Array, " b"]]:
        """See `Distillation`: a level of the grid (t) and the next one, with less noise (s)."""
        grid = jnp.asarray(self.grid(schedule), u.dtype)
        first = _index(u, self.steps - 1)
        return {"t": grid[first], "s": grid[first + 1]}

    def grid(self, schedule: Schedule) -> Float[np.ndarray, " {self.steps}"]:
        """The times of the levels, from the noisiest to the boundary.

        Raises:
            InputError: the schedule has fewer steps.
        """
        return sampling_times(schedule, self.steps, "karras", LOGSNR_MIN)[:-1]

    def losses(
        self,
        schedule: Schedule,
        student: Predict,
        teacher: Predict,
        target: Predict,
        x_t: Image,
        times: Times,
    ) -> dict[str, Float[Array, " b"]]:
        """See `Distillation`."""
        t, s = times["t"], times["s"]
        bounded = functools.partial(_bounded, schedule)
        x_s = self.before(schedule, teacher, x_t, times)
        goal = bounded(x_s, target(x_s, s), s)
        distance = jnp.square(bounded(x_t, student(x_t, t), t) - jax.lax.stop_gradient(goal))
        simple = jnp.mean(distance, axis=(1, 2, 3))
        if self.metric == "l2":
            return {"loss": simple, "simple": simple}
        # c = 0.00054 sqrt(d), of d values; both sides are divided by sqrt(d).
        shift = 0.00054
        return {"loss": jnp.sqrt(simple + shift**2) - shift, "simple": simple}

    def before(self, schedule: Schedule, teacher: Predict, x_t: Image, times: Times) -> Image:
        """Where the teacher's step from t to s comes."""
        t, s = times["t"], times["s"]
        x0 = teacher(x_t, t)
        x_s = ddim_step(schedule, x_t, x0, t, s)
        if self.solver == "ddim":
            return x_s
        # Karras et al. 2022, algorithm 1: dx / dsigma = (x - x_0) / sigma of constant scale.
        alpha_t, alpha_s = (alpha_sigma(per_image(schedule.logsnr(time)))[0] for time in (t, s))
        slope = eps_from_x0(x_t, x0, schedule.logsnr(t))
        slope_there = eps_from_x0(x_s, teacher(x_s, s), schedule.logsnr(s))
        gap = deviation(schedule.logsnr(s)) - deviation(schedule.logsnr(t))
        return alpha_s * (x_t / alpha_t + 0.5 * per_image(gap) * (slope + slope_there))


def _bounded(schedule: Schedule, x_t: Image, x0: Image, t: Float[Array, " b"]) -> Image:
    boundary = jnp.asarray(boundary_time(schedule))
    return consistency(x_t, x0, schedule.logsnr(t), schedule.logsnr(boundary))


def ddim_step(
    schedule: Schedule, x_t: Image, x0: Image, t: Float[Array, " b"], s: Float[Array, " b"]
) -> Image:
    """x_s, where x_0 does not change on the way; each image has its own times."""
    return first_order(x_t, x0, per_image(schedule.logsnr(t)), per_image(schedule.logsnr(s)))


def _index(u: Float[Array, " b"], count: int) -> Array:
    return jnp.minimum((u * count).astype(jnp.int32), count - 1)


def make_progressive(
    schedule: Schedule, steps: int, teacher_steps: int, weighting: str, same_form: bool
) -> Progressive:
    """A `Progressive` that can be trained.

    Args:
        schedule: of the noise.
        steps: see `Progressive`.
        teacher_steps: see `Progressive`; 0 is twice `steps`.
        weighting: see `Progressive`.
        same_form: whether the student's network predicts what its teacher's does.

    Raises:
        InputError: the steps do not halve, or there is no such weighting.
    """
    teacher_steps = teacher_steps or 2 * steps
    if teacher_steps != 2 * steps and (teacher_steps != steps or same_form):
        other = "" if same_form else f", or {steps} to learn another prediction first"
        raise InputError(
            f"config.distill.teacher_steps must be twice config.distill.steps, {2 * steps}{other}, "
            f"got {teacher_steps}; halve one round at a time"
        )
    check_name("weighting", weighting, WEIGHTINGS)
    method = Progressive(steps, teacher_steps, weighting)
    method.grid(schedule)
    return method


def make_consistency(
    schedule: Schedule, steps: int, solver: str, metric: str, target: str
) -> Consistency:
    """A `Consistency` that can be trained; see there.

    Raises:
        InputError: there is no such solver or metric, or the grid has fewer than two levels.
    """
    if steps < 2:
        raise InputError(
            f"config.distill.steps must be at least 2 levels of noise, got {steps}; set 18 or more"
        )
    check_name("solver", solver, SOLVERS)
    check_name("metric", metric, METRICS)
    method = Consistency(steps, solver, metric, target)
    method.grid(schedule)
    return method


def check_name(field: str, name: str, known: tuple[str, ...]) -> None:
    """Looks whether a field of `config.distill` has one of its names.

    Raises:
        InputError: it has not.
    """
    if name not in known:
        raise InputError(
            f"config.distill.{field} must be one of {', '.join(known)}, got {name!r}; name one"
        )
