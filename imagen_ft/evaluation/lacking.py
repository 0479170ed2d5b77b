"""Fields that say what is measured, and with what, and that a config may lack."""

import inspect
from collections.abc import Callable
from typing import Any

from imagen_ft.cascade.loading import lacking_in_cascade, lacking_in_mesh
from imagen_ft.evaluation.extractors import KINDS
from imagen_ft.evaluation.sampled import BALANCED, NUM_IMAGES
from imagen_ft.metrics.frechet import distance_at_infinity
from imagen_ft.metrics.inception_score import inception_score
from imagen_ft.metrics.kernel_distance import kernel_distance
from imagen_ft.metrics.sliced_distance import sliced_distance
from input_pipeline.sources.lacking import lacking_in_source
from launch.fields import Fields
from launch.runtime.optional_fields import Defaults, below, unset, within

# By measure what takes its arguments.
_TAKEN_BY: dict[str, Callable] = {
    "frechet_infinity": distance_at_infinity,
    "inception_score": inception_score,
    "kernel": kernel_distance,
    "sliced": sliced_distance,
}
# No arguments of one measure: they are those of all.
_COMMON = ("allow_few_images",)


def lacking_in_images(path: str, spec: Fields) -> Defaults:
    """Fields of `image_sets.open_set` that a `spec` lacks, which is at `path`."""
    own: Defaults = {"square": unset(int), "file_format": unset(str), "uint8_rule": unset(str)}
    source = lacking_in_source(f"{path}.source", spec.get("source") or {})
    return {**below(path, spec, own), **source}


def lacking_in_sets(specs: Fields) -> Defaults:
    """Fields of `config.sets` that a config lacks."""
    fields: Defaults = {}
    for name, spec in specs.items():
        lacking = _lacking_in_drawn if "cascade" in spec else lacking_in_images
        fields |= lacking(f"sets.{name}", spec)
    return fields


def _lacking_in_drawn(path: str, spec: Fields) -> Defaults:
    """Fields of `sampled.open_sampled` that a `spec` lacks."""
    own: Defaults = {"num_images": NUM_IMAGES, "labels": BALANCED, "write": unset(str)}
    own |= {"seed": unset(int), "square": unset(int)}
    cascade = spec["cascade"]
    fields = {
        **below(path, spec, own),
        **within(f"{path}.cascade", lacking_in_cascade(cascade)),
        **within(f"{path}.cascade", lacking_in_mesh(cascade)),
        **below(f"{path}.cascade", cascade, {"seed": 0}),
    }
    if min(entry.stage.low_size for entry in cascade.stages.values()):
        fields |= lacking_in_images(f"{path}.low", spec.get("low") or {})
    return fields


def lacking_in_measuring(config: Fields) -> Defaults:
    """Fields of extractor, references and arguments of measures that a config lacks."""
    extractor, reference = config.get("extractor") or {}, config.get("reference") or {}
    kind = KINDS.get(extractor.get("name", ""))
    fields = {
        **below("extractor", extractor, kind.fields if kind else {"name": unset(str)}),
        **below("reference", reference, {"statistics": ""}),
    }
    for name in ("source", "held_out"):
        fields |= lacking_in_images(f"reference.{name}", reference.get(name) or {})
    for measure, function in _TAKEN_BY.items():
        fields |= below(measure, config.get(measure) or {}, _arguments(function))
    for measure in ("precision_recall", "density_coverage"):
        convention = {"k": unset(int), "comparison": unset(str)}
        fields |= below(measure, config.get(measure) or {}, convention)
    return fields


def _arguments(function: Callable) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is not parameter.empty and parameter.name not in _COMMON
    }
