"""Losses that train a student's few steps to stand for a teacher's many.

Both methods see a network as the clean image it predicts. Their time grids are those of `spacing`,
so samplers visit the very times that were trained.
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

# (x_t, t) -> clean images; each image has its own time.
Predict: TypeAlias = Callable[[Image, Float[Array, " b"]], Image]
# Per image and by name: `t`, and what else a method needs; other entries are ignored.
Times: TypeAlias = Mapping[str, Array]
WEIGHTINGS = ("truncated_snr", "snr_plus_one")
SOLVERS = ("ddim", "heun")
METRICS = ("l2", "pseudo_huber")


@runtime_checkable
class Distillation(Protocol):
    """A distillation method."""

    @property
    def steps(self) -> int:
        """Steps of the student, or of the grid it is trained on."""

    @property
    def target(self) -> str:
        """The moving average that the student is compared with; '' is the student itself."""

    def times(self, schedule: Schedule, u: Float[Array, " b"]) -> dict[str, Float[Array, " b"]]:
        """`Times` from uniform numbers in [0, 1)."""

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

        `target` is the average of the student that the property of this name names; no gradient
        goes through it, nor through the teacher.
        """


@dataclasses.dataclass(frozen=True)
class Progressive:
    """One DDIM step stands for two of the teacher's (Salimans and Ho 2022, algorithm 2).

    Both start at the last time ('trailing'), and the prediction of the last step is the image.
    """

    steps: int  # of the student
    # Twice `steps`; or the same, where the student learns to predict the same in another form (eps
    # to v).
    teacher_steps: int
    # Of the squared error of x_0: max(SNR, 1), or SNR + 1, which is the error of v (Salimans and Ho
    # 2022, section 4 and appendix B).
    weighting: str = "truncated_snr"
    target: str = dataclasses.field(default="", init=False)

    def times(self, schedule: Schedule, u: Float[Array, " b"]) -> dict[str, Float[Array, " b"]]:
        """See `Distillation`: where a student's step starts (t), its middle, and its end (s)."""
        grid = jnp.asarray(self.grid(schedule), u.dtype)
        stride = self.teacher_steps // self.steps
        first = stride * _index(u, self.steps)
        return {"t": grid[first], "middle": grid[first + stride - 1], "s": grid[first + stride]}

    def grid(self, schedule: Schedule) -> Float[np.ndarray, " {self.teacher_steps}+1"]:
        """Where the teacher's steps start and end; raises InputError if there are too few."""
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
        # max(SNR, 1): unlike SNR, not 0 at pure noise, where sampling starts.
        weight = jnp.exp(jnp.maximum(logsnr, 0.0))
        if self.weighting == "snr_plus_one":
            weight = 1.0 + jnp.exp(logsnr)
        return {"loss": weight * simple, "simple": simple}

    def goal(self, schedule: Schedule, teacher: Predict, x_t: Image, times: Times) -> Image:
        """The x_0 with which one step from t ends where the teacher's steps end."""
        t, middle, s = times["t"], times["middle"], times["s"]
        x0 = teacher(x_t, t)
        if self.teacher_steps == self.steps:
            return x0
        # 1. The teacher's two steps.
        x_middle = ddim_step(schedule, x_t, x0, t, middle)
        x0 = teacher(x_middle, middle)
        x_s = ddim_step(schedule, x_middle, x0, middle, s)
        # 2. The student's step solved for x_0: (x_s - r x_t) / (alpha_s - r alpha_t) with r =
        # sigma_s / sigma_t (Salimans and Ho 2022, algorithm 2). At s = 0 it is x_s, the image.
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            alpha_sigma(per_image(schedule.logsnr(time))) for time in (t, s)
        )
        ratio = sigma_s / sigma_t
        return jnp.where(per_image(s) > 0, (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t), x0)


@dataclasses.dataclass(frozen=True)
class Consistency:
    """All points of a trajectory predict its first one (Song et al. 2023, algorithm 2)."""

    steps: int  # noise levels of the grid (Karras et al. 2022, Eq. 5), N of the paper
    # Of the teacher's step from one level to the next: 'ddim' (Euler's step at constant scale) or
    # 'heun'.
    solver: str = "heun"
    metric: str = "pseudo_huber"  # 'l2' or 'pseudo_huber' (Song and Dhariwal 2023, Eq. 7)
    target: str = ""  # see `Distillation`

    def times(self, schedule: Schedule, u: Float[Array, " b"]) -> dict[str, Float[Array, " b"]]:
        """See `Distillation`: a level of the grid (t) and the next, with less noise (s)."""
        grid = jnp.asarray(self.grid(schedule), u.dtype)
        first = _index(u, self.steps - 1)
        return {"t": grid[first], "s": grid[first + 1]}

    def grid(self, schedule: Schedule) -> Float[np.ndarray, " {self.steps}"]:
        """Times of the levels, noisiest to boundary; raises InputError if there are too few."""
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
        # The teacher takes x_t to x_s; the student at t must agree with its average at s.
        x_s = self.before(schedule, teacher, x_t, times)
        goal = bounded(x_s, target(x_s, s), s)
        distance = jnp.square(bounded(x_t, student(x_t, t), t) - jax.lax.stop_gradient(goal))
        simple = jnp.mean(distance, axis=(1, 2, 3))
        if self.metric == "l2":
            return {"loss": simple, "simple": simple}
        # sqrt(||.||^2 + c^2) - c with c = 0.00054 sqrt(d) for d values; divided by sqrt(d), so that
        # the mean squared error takes the norm's place.
        shift = 0.00054
        return {"loss": jnp.sqrt(simple + shift**2) - shift, "simple": simple}

    def before(self, schedule: Schedule, teacher: Predict, x_t: Image, times: Times) -> Image:
        """x_s, one step of the teacher's from t."""
        t, s = times["t"], times["s"]
        x0 = teacher(x_t, t)
        x_s = ddim_step(schedule, x_t, x0, t, s)
        if self.solver == "ddim":
            return x_s
        # Heun's step of dx / dsigma = (x - x_0) / sigma at constant scale, where the slope is eps
        # (Karras et al. 2022, algorithm 1).
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
    """x_s if x_0 were constant on the way; each image has its own times."""
    return first_order(x_t, x0, per_image(schedule.logsnr(t)), per_image(schedule.logsnr(s)))


def _index(u: Float[Array, " b"], count: int) -> Array:
    # A u just below 1, times count, may round up to count.
    return jnp.minimum((u * count).astype(jnp.int32), count - 1)


def make_progressive(
    schedule: Schedule, steps: int, teacher_steps: int, weighting: str, same_form: bool
) -> Progressive:
    """A checked `Progressive`; `teacher_steps` 0 means 2 `steps`. Raises InputError.

    `same_form` says whether the student predicts the same quantity as its teacher.
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
    # Raises where the schedule has too few steps.
    method.grid(schedule)
    return method


def make_consistency(
    schedule: Schedule, steps: int, solver: str, metric: str, target: str
) -> Consistency:
    """A checked `Consistency`; raises InputError."""
    if steps < 2:
        raise InputError(
            f"config.distill.steps must be at least 2 levels of noise, got {steps}; set 18 or more"
        )
    check_name("solver", solver, SOLVERS)
    check_name("metric", metric, METRICS)
    method = Consistency(steps, solver, metric, target)
    # Raises where the schedule has too few steps.
    method.grid(schedule)
    return method


def check_name(field: str, name: str, known: tuple[str, ...]) -> None:
    """Raises InputError unless a field of `config.distill` has a known name."""
    if name not in known:
        raise InputError(f"config.distill.{field} must be one of {', '.join(known)}, got {name!r}")
