"""Optional fields about what is measured and with what, which a config may leave out."""

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

# The function that takes a measure's arguments: its signature has their names and defaults.
_TAKEN_BY: dict[str, Callable] = {
    "frechet_infinity": distance_at_infinity,
    "inception_score": inception_score,
    "kernel": kernel_distance,
    "sliced": sliced_distance,
}
# Arguments that all measures share; the config has them at its top.
_COMMON = ("allow_few_images",)


def lacking_in_images(path: str, spec: Fields) -> Defaults:
    """Fields of `image_sets.open_set` that the `spec` at `path` does not have."""
    own: Defaults = {"square": unset(int), "file_format": unset(str), "uint8_rule": unset(str)}
    source = lacking_in_source(f"{path}.source", spec.get("source") or {})
    return {**below(path, spec, own), **source}


def lacking_in_sets(specs: Fields) -> Defaults:
    """Fields of `config.sets` that a config does not have."""
    fields: Defaults = {}
    for name, spec in specs.items():
        lacking = _lacking_in_drawn if "cascade" in spec else lacking_in_images
        fields |= lacking(f"sets.{name}", spec)
    return fields


def _lacking_in_drawn(path: str, spec: Fields) -> Defaults:
    # See `sampled.open_sampled`.
    own: Defaults = {"num_images": NUM_IMAGES, "labels": BALANCED, "write": unset(str)}
    own |= {"seed": unset(int), "square": unset(int)}
    cascade = spec["cascade"]
    fields = {
        **below(path, spec, own),
        **within(f"{path}.cascade", lacking_in_cascade(cascade)),
        **within(f"{path}.cascade", lacking_in_mesh(cascade)),
        **below(f"{path}.cascade", cascade, {"seed": 0}),
    }
    # Without a stage that starts from noise, the cascade needs images to enlarge.
    if min(entry.stage.low_size for entry in cascade.stages.values()):
        fields |= lacking_in_images(f"{path}.low", spec.get("low") or {})
    return fields


def lacking_in_measuring(config: Fields) -> Defaults:
    """Fields about extractor, references and measures' arguments that a config does not have."""
    extractor, reference = config.get("extractor") or {}, config.get("reference") or {}
    # 1. The extractor's fields depend on its name, which may not be set yet.
    kind = KINDS.get(extractor.get("name", ""))
    fields = {
        **below("extractor", extractor, kind.fields if kind else {"name": unset(str)}),
        **below("reference", reference, {"statistics": ""}),
    }
    # 2. Real images.
    for name in ("source", "held_out"):
        fields |= lacking_in_images(f"reference.{name}", reference.get(name) or {})
    # 3. Arguments of measures, with the defaults of their functions.
    for measure, function in _TAKEN_BY.items():
        fields |= below(measure, config.get(measure) or {}, _arguments(function))
    for measure in ("precision_recall", "density_coverage"):
        # Without defaults: both depend on the convention, ADM's or prdc's.
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
