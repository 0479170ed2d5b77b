"""The points of a sweep: all combinations of the values with which one stage is sampled."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import ml_collections

from imagen_ft.cascade.changes import SAMPLING, changed
from imagen_ft.cascade.stage_weights import open_run
from imagen_ft.diffusion.from_config import make_denoiser, make_guided
from imagen_ft.diffusion.sampler_from_config import unread_strengths
from imagen_ft.diffusion.stage import Stage
from launch.errors import InputError
from launch.runtime.config import reading
from launch.runtime.ema import MAIN

EMA = "ema"
DIMENSIONS = (*SAMPLING, EMA)
_OF_SAMPLER = "sampler."


@dataclasses.dataclass(frozen=True)
class Point:
    """One way of sampling a stage."""

    name: str  # its folder's too: 'sampler=ddim+num_steps=50'
    values: dict[str, Any]  # by dimension, without those that its sampler does not read
    config: ml_collections.ConfigDict  # config.cascade with these values
    ema: str  # which average of the stage's weights
    evaluations: int  # of the network, for one image


def make_points(config: ml_collections.ConfigDict) -> list[Point]:
    """The points of `config.grid`, without duplicates; nothing is loaded.

    Combinations that differ only in what their sampler does not read are one point. `config.stage`
    names the stage of `config.cascade` that is swept; `config.grid` has the values of each of the
    `DIMENSIONS`. Raises `InputError` for a wrong stage, dimension or value, for a value listed
    twice, or for a dimension that the stage does not read.
    """
    # 1. Check the stage and the values.
    with reading(config.cascade):
        entry = _entry(config)
        make_denoiser(entry.stage)
    grid = {name: _values(name, values) for name, values in config.grid.items()}
    if not grid:
        raise InputError(
            f"config.grid must have a dimension, got none; add some of {', '.join(DIMENSIONS)}"
        )
    if EMA in grid:
        _check_averages(config.stage, entry.run, grid[EMA])
        # The average varies slowest, so that each one's weights are loaded only once.
        grid = {EMA: grid.pop(EMA), **grid}
    # 2. Try each combination as a cascade.
    points: dict[str, Point] = {}
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        for name in unread_strengths(values.get("sampler", entry.sampler.name)):
            values.pop(name, None)
        try:
            cascade = changed(config.cascade, {"stages": {config.stage: values}}, loading=True)
            with reading(cascade):
                stage = make_guided(cascade.stages[config.stage], f"stages.{config.stage}")
        except InputError as error:
            raise InputError(f"config.grid: {error}") from None
        # 3. Name points by what they read: duplicates get the same name.
        own = {name: value for name, value in values.items() if _reads(stage, name)}
        name = "+".join(f"{dimension}={text(value)}" for dimension, value in own.items())
        ema = values.get(EMA, entry.get("ema", MAIN))
        points.setdefault(name, Point(name, own, cascade, ema, stage.evaluations))
    # 4. A dimension that no point reads is a mistake.
    for dimension in grid:
        if not any(dimension in point.values for point in points.values()):
            raise InputError(
                f"config.grid.{dimension} must be a setting of stage {config.stage!r} and its "
                "samplers, and is not; leave it out"
            )
    return list(points.values())


def text(value: Any) -> str:
    """A value of a dimension, as text for names and tables."""
    if isinstance(value, tuple | list):
        return "-".join(map(text, value))
    # Six digits if they are exact; else all, so that two values never share a name.
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _entry(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    stages = config.cascade.stages
    if config.stage not in stages:
        raise InputError(f"config.stage must be one of {', '.join(stages)}, got {config.stage!r}")
    return stages[config.stage]


def _values(name: str, values: Any) -> tuple[Any, ...]:
    if name not in DIMENSIONS:
        raise InputError(
            f"config.grid has no dimension {name!r}; use some of {', '.join(DIMENSIONS)}"
        )
    if not isinstance(values, tuple | list) or not values:
        raise InputError(
            f"config.grid.{name} must be a list of values, got {values!r}; give at least one"
        )
    values = tuple(tuple(value) if isinstance(value, list) else value for value in values)
    for value in values:
        if values.count(value) > 1:
            raise InputError(
                f"config.grid.{name} must have each value once, got {value!r} twice; drop one"
            )
    return values


def _reads(stage: Stage, name: str) -> bool:
    """Whether images of the stage depend on a dimension."""
    # Conditions that the names of fields do not show.
    if name == "noise_augmentation":
        return bool(stage.denoiser.low_size)
    if name in ("guidance_interval", "guidance_schedule", "guidance_rescale"):
        return stage.is_guided
    if name in ("cads_interval", "cads_mix"):
        return stage.cads_scale > 0
    # Other fields belong to the sampler: it reads those that it has.
    field = SAMPLING[name].field if name in SAMPLING else ""
    if not field.startswith(_OF_SAMPLER) or name == "sampler":
        return True
    sampler: Any = stage.sampler  # samplers are dataclasses, which their protocol cannot say
    return field.removeprefix(_OF_SAMPLER) in {field.name for field in dataclasses.fields(sampler)}


def _check_averages(stage: str, path: str, names: Iterable[str]) -> None:
    # Only runs keep several averages; imported weights are a single set.
    run = open_run(path)
    if run is None:
        raise InputError(
            f"config.grid.ema needs a run of imagen_ft.finetune, got {path}, which has only one "
            "set of weights; leave it out"
        )
    there = (MAIN, *(name for name in run.config.get("ema", {}) if name != MAIN))
    for name in names:
        if name not in there:
            raise InputError(
                f"config.grid.ema must be some of the averages of {path} ({', '.join(there)}), got "
                f"{name!r}; leave it out, or train {stage} with it"
            )
