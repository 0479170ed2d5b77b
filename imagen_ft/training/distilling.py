"""A stage that learns from another one, its teacher, to draw in fewer steps."""

import dataclasses
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Float

from imagen_ft.diffusion import distillation, guidance
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.distillation import Distillation, Predict
from imagen_ft.diffusion.forward_process import PREDICTIONS, Image, x0_from_output
from imagen_ft.diffusion.from_config import make_denoiser
from imagen_ft.training.image_losses import Inputs, Losses, noised
from launch.errors import InputError
from launch.runtime.limits import MOST, check_numbers
from launch.runtime.optional_fields import Defaults, below, unset
from launch.runtime.types import Array, Variables

_OF_METHODS = {
    "progressive": ("teacher_steps", "weighting"),
    "consistency": ("solver", "metric", "target"),
}
# Fields of `config.distill`, with their defaults.
FIELDS: dict[str, Any] = {
    "method": "progressive",
    "prediction": "",  # the teacher's; '' is the student's
    "learned_variance": False,  # the teacher's
    "guidance_weight": 1.0,
    "threshold_percentile": 100.0,
    "threshold_maximum": float("inf"),
    "teacher_steps": 0,
    "weighting": "truncated_snr",
    "solver": "heun",
    "metric": "pseudo_huber",
    "target": "",
}


def lacking_in_distill(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `config.distill` that a config does not set."""
    own = {"teacher": unset(str), "steps": unset(int), **FIELDS}
    return below("distill", config.get("distill") or {}, own)


@dataclasses.dataclass(frozen=True)
class Teaching:
    """What a config says about a student's teacher."""

    path: str  # of the teacher's run, or its weights
    teacher: Denoiser  # at the size that the student is trained at
    method: Distillation
    # The teacher's, which the student learns to include (Meng et al. 2023, section 3.1, at one
    # weight): it runs once where its teacher ran twice.
    guidance_weight: float = 1.0
    # For the images that the teacher predicts, see `guidance.threshold`.
    threshold_percentile: float = 100.0
    threshold_maximum: float = float("inf")

    def losses(
        self,
        student: Denoiser,
        variables: Variables,
        target: Variables,
        teacher: Variables,
        inputs: Inputs,
        text: Float[Array, "b n d"],
        null_text: Float[Array, "n d"],
    ) -> Losses:
        """Losses of each image, see `Distillation`; both networks see the same noise and condition.

        `variables` are the student's, `target` those of its average, `teacher` the teacher's.
        `inputs` come from `draw_inputs` with the method's times.
        """
        # 1. The teacher: guided, and its images kept in range as in sampling.
        _, x_t, condition, level = noised(student, inputs)
        see = condition, level
        taught = _predict(self.teacher, teacher, text, *see)
        if self.guidance_weight != 1.0:
            taught = self._guided(teacher, text, null_text, *see)

        def clipped(x_t: Image, t: Float[Array, " b"]) -> Image:
            limits = self.threshold_percentile, self.threshold_maximum
            return guidance.threshold(taught(x_t, t), *limits)

        # 2. The student, and its average.
        own, average = (_predict(student, tree, text, *see) for tree in (variables, target))
        return self.method.losses(student.schedule, own, clipped, average, x_t, inputs)

    def _guided(
        self,
        variables: Variables,
        text: Float[Array, "b n d"],
        null_text: Float[Array, "n d"],
        condition: Image | None,
        level: Float[Array, " b"] | None,
    ) -> Predict:
        # One batch of twice the rows: with text, then without.
        texts = jnp.concatenate([text, jnp.broadcast_to(null_text[None], text.shape)])
        see = jax.tree.map(lambda a: jnp.concatenate([a, a]), (condition, level))
        predict = _predict(self.teacher, variables, texts, *see)

        def guided(x_t: Image, t: Float[Array, " b"]) -> Image:
            both = predict(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))
            plain, other = jnp.split(both, 2)
            # The weights sum to 1: what holds for eps and v holds for x_0.
            return guidance.guide(plain, other, self.guidance_weight, self.teacher.channels)

        return guided


def _predict(
    denoiser: Denoiser,
    variables: Variables,
    text: Float[Array, "b n d"],
    condition: Image | None,
    level: Float[Array, " b"] | None,
) -> Predict:
    """(x_t, t) -> x_0, as a network predicts it."""
    context = denoiser.context(variables, text, level)

    def predict(x_t: Image, t: Float[Array, " b"]) -> Image:
        output = denoiser.predict(variables, x_t, t, context, condition)
        # Without the variance, and out of the network's dtype.
        output = output[..., : denoiser.channels].astype(x_t.dtype)
        return x0_from_output(output, x_t, denoiser.schedule.logsnr(t), denoiser.prediction)

    return predict


def make_teaching(config: ml_collections.ConfigDict, student: Denoiser) -> Teaching:
    """Reads `config.distill` for the network `student`; opens nothing, raises InputError."""
    # 1. The fields.
    given = config.distill
    fields = {**FIELDS, **given}
    _check_fields(config, fields, student)
    # 2. The teacher: the student's stage, but for what it predicts.
    prediction = fields["prediction"] or student.prediction
    stage = ml_collections.ConfigDict(config.stage.to_dict())
    stage.prediction, stage.learned_variance = prediction, fields["learned_variance"]
    teacher = dataclasses.replace(
        make_denoiser(stage), size=student.size, low_size=student.low_size
    )
    # 3. The method.
    schedule, steps = student.schedule, fields["steps"]
    own = {name: fields[name] for name in _OF_METHODS[fields["method"]]}
    method: Distillation
    if fields["method"] == "progressive":
        same = prediction == student.prediction
        method = distillation.make_progressive(schedule, steps, **own, same_form=same)
    else:
        method = distillation.make_consistency(schedule, steps, **own)
    return Teaching(
        fields["teacher"],
        teacher,
        method,
        fields["guidance_weight"],
        fields["threshold_percentile"],
        fields["threshold_maximum"],
    )


def _check_fields(
    config: ml_collections.ConfigDict, fields: dict[str, Any], student: Denoiser
) -> None:
    # 1. Names.
    for name in config.distill:
        if name not in ("teacher", "steps", *FIELDS):
            raise InputError(
                f"config.distill has no field {name!r}; use one of teacher, steps, "
                f"{', '.join(FIELDS)}"
            )
    if not fields.get("teacher"):
        raise InputError("config.distill.teacher must be a run to learn from, got ''; set it")
    distillation.check_name("method", fields["method"], tuple(_OF_METHODS))
    for method, names in _OF_METHODS.items():
        for name in set(names) & set(config.distill):
            if method != fields["method"]:
                raise InputError(
                    f"config.distill.{name} is of the method {method!r}, got "
                    f"{fields['method']!r}; leave it out"
                )
    # 2. Values.
    if "steps" not in fields:
        raise InputError(
            "config.distill.steps must be the student's number of steps, got none; set it"
        )
    check_numbers(fields, {"steps": (1, MOST), "teacher_steps": (0, MOST)}, "config.distill")
    if fields["prediction"] not in ("", *PREDICTIONS):
        raise InputError(
            f"config.distill.prediction must be one of {', '.join(PREDICTIONS)}, got "
            f"{fields['prediction']!r}; name what the teacher predicts"
        )
    weight, percentile = fields["guidance_weight"], fields["threshold_percentile"]
    for name, value, least, most in (
        ("guidance_weight", weight, 0.0, sys.float_info.max),
        ("threshold_percentile", percentile, 1e-6, 100.0),
        ("threshold_maximum", fields["threshold_maximum"], 1.0, math.inf),
    ):
        if not least <= value <= most:
            raise InputError(
                f"config.distill.{name} must be from {least:g} to {most:g}, got {value}"
            )
    # 3. What must fit the rest of the config.
    if fields["target"] and fields["target"] not in config.ema:
        raise InputError(
            "config.distill.target must be an average of config.ema "
            f"({', '.join(config.ema) or 'none'}), got {fields['target']!r}"
        )
    if student.learned_variance:
        raise InputError(
            "config.stage.learned_variance must be False with config.distill, got True: a "
            "student's variance is neither trained nor used; set it to False, and "
            "config.distill.learned_variance=True if the teacher has one"
        )
    if config.init_from or config.get("lora"):
        name = "init_from" if config.init_from else "lora"
        raise InputError(
            f"config.{name} must be empty with config.distill, got {config[name]!r}: a student "
            "starts from all of its teacher's weights; leave it out"
        )
    for name, value in config.loss.items():
        if value:
            raise InputError(
                f"config.loss.{name} must be 0 with config.distill, which has a loss of its own, "
                f"got {value}; set 0"
            )
