"""A teacher's weights, and what they must be to teach a student."""

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from imagen_ft import weights
from imagen_ft.cascade.loading import check_same_model, check_same_text
from imagen_ft.cascade.stage_weights import (
    check_public,
    digest_of,
    load_public,
    open_run,
    public_path,
    variables_of,
)
from imagen_ft.diffusion.distillation import Progressive
from imagen_ft.text.encoders import TextEncoder
from imagen_ft.training.distilling import FIELDS, Teaching
from launch.errors import InputError
from launch.runtime.devices.mesh import state_shardings
from launch.runtime.run import Run
from launch.runtime.types import Variables


def check_teacher(
    teaching: Teaching, config: ml_collections.ConfigDict, encoder: TextEncoder | None
) -> dict[str, str]:
    """Checks the teacher's weights; returns checksums for `claim_workdir`.

    `config` is the student's. Without an encoder the teacher's text states are not compared.

    Raises:
        InputError: they are missing, unfinished, damaged or another network's, or were trained with
            another schedule or text; or the steps are not half of those it was distilled to.
    """
    run = open_run(teaching.path)
    if run is None:
        check_public(teaching.teacher.prediction, teaching.path, "config.distill")
        return {"teacher": weights.digest(public_path(teaching.path), "unet")}
    check_same_model(run, _stage_of(run, teaching, config), config)
    if encoder is not None:
        check_same_text(run, encoder)
    _check_steps(run, teaching)
    return {"teacher": digest_of(run)}


def _stage_of(
    run: Run, teaching: Teaching, config: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """The student's stage as its teacher's config must have it."""
    stage, trained = ml_collections.ConfigDict(config.stage.to_dict()), run.config.stage
    for name, default in (("prediction", "eps"), ("learned_variance", False)):
        value = getattr(teaching.teacher, name)
        if name in stage:
            del stage[name]
        # A config may leave out a default: say it only where the teacher's does.
        if name in trained or value != default:
            stage[name] = value
    return stage


def _check_steps(run: Run, teaching: Teaching) -> None:
    given = run.config.get("distill")
    if not given:
        return
    method = teaching.method
    if given.get("method", FIELDS["method"]) != "progressive":
        raise InputError(
            "config.distill.teacher must not be a consistency model, whose steps do not solve an "
            f"ODE, got {run.path}; use the run that it was distilled from"
        )
    if isinstance(method, Progressive) and method.teacher_steps != given.steps:
        raise InputError(
            f"config.distill.teacher_steps must be {given.steps}, to which {run.path} was "
            f"distilled, got {method.teacher_steps}; set config.distill.steps={given.steps // 2}"
        )


def load_teacher(
    teaching: Teaching, text_shape: tuple[int, int], mesh: Mesh | None = None
) -> Variables:
    """The teacher's variables, sharded as a student's are."""
    run = open_run(teaching.path)
    if run is None:
        field = "config.stage with config.distill"
        return load_public(teaching.path, teaching.teacher, text_shape, field, mesh)
    return variables_of(run, teaching.teacher, text_shape, mesh)


def begin_as(teacher: Variables, student: Variables, mesh: Mesh) -> Variables:
    """A copy of a teacher's variables in the shapes of its student's, without a variance."""

    def copied(teacher: Variables) -> Variables:
        # The variance comes after the prediction, along the last axis. A copy, because the
        # student's variables are donated at every step.
        return jax.tree.map(
            lambda leaf, own: jnp.copy(leaf[..., : own.shape[-1]] if own.shape else leaf),
            teacher,
            student,
        )

    return jax.jit(copied, out_shardings=state_shardings(mesh, student))(teacher)
