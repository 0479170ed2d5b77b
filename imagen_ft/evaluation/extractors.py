"""The networks that a config can measure with."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from classifiers.clip import templates
from classifiers.clip.run import ClipRun
from classifiers.extractors.classifier import classifier
from classifiers.extractors.clip import clip
from classifiers.extractors.dinov2 import dinov2
from classifiers.extractors.extractor import Extractor
from classifiers.extractors.inception import inception
from classifiers.extractors.zero_shot import zero_shot
from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.config import plain
from launch.runtime.ema import MAIN
from launch.runtime.optional_fields import Defaults, unset


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of the table of extractors."""

    # Opens one, given the fields of the config, whose names and defaults are below.
    open: Callable[[dict[str, Any]], Extractor]
    fields: Defaults
    logits: str  # its tap for the inception score; '' if it has none
    # Appended to the names of measures, with the extractor's name, to tell them from Inception's.
    suffix: str
    has_spatial: bool = False  # whether sFID can be taken on its spatial features
    has_classes: bool = False  # whether it is a classifier of the images' own classes
    takes_names: bool = False  # whether class names can make it a classifier, as with CLIP


def _inception(fields: dict[str, Any]) -> Extractor:
    return inception(fields.get("rule", "tf1"), fields.get("path") or None)


# For the meaning of `rule`, `positions`, `pixels` and `ema` see the extractors' own modules.
KINDS = {
    "inception": Kind(
        _inception,
        {"path": unset(str), "rule": "tf1"},
        "logits_unbiased",
        "",
        has_spatial=True,
    ),
    "classifier": Kind(
        lambda fields: classifier(**fields),
        {"path": unset(str), "seed": 0, "ema": MAIN, "best": False},
        "logits",
        " ({})",
        has_classes=True,
    ),
    "clip": Kind(
        lambda fields: clip(**fields),
        {"path": unset(str), "ema": MAIN, "best": False},
        "",
        " ({})",
        takes_names=True,
    ),
    "dinov2": Kind(
        lambda fields: dinov2(**fields),
        {"path": unset(str), "positions": "hub", "pixels": "torch", "size": 224},
        "",
        " ({})",
    ),
}


def check_extractor(spec: Fields) -> Kind:
    """The row of an extractor; raises `InputError` if there is no such row or a field is wrong.

    `spec` has `name` and the fields of that extractor. All need `path`, of a run or an import, but
    for inception, whose weights are searched where torch-fidelity and pytorch-fid put them.
    """
    name = spec.get("name")
    if name not in KINDS:
        raise InputError(f"config.extractor.name must be one of {', '.join(KINDS)}, got {name!r}")
    fields = KINDS[name].fields
    if unknown := sorted(set(spec) - {"name", *fields}):
        raise InputError(
            f"config.extractor has no field {unknown[0]!r}; {name} has {', '.join(fields)}"
        )
    if name != "inception" and not spec.get("path"):
        raise InputError(f"config.extractor.path must be the weights of {name}, got none; set it")
    return KINDS[name]


def open_zero_shot(
    spec: Fields, class_names: Sequence[str], named: str | Sequence[str]
) -> Extractor:
    """Opens an extractor that `takes_names`, with logits for these classes.

    `class_names` are in words; `named` are the sentences about them, as
    `classifiers.clip.templates.load` takes them. Raises `InputError` as `open_extractor`, or if it
    has no tokenizer.
    """
    fields = plain(spec)
    del fields["name"]
    return zero_shot(ClipRun.open(**fields), class_names, templates.load(named))


def open_extractor(spec: Fields) -> Extractor:
    """Opens the extractor of a config, see `check_extractor`.

    Raises `InputError` as `check_extractor`, or if its weights are missing, damaged or unfinished.
    """
    kind = check_extractor(spec)
    fields = plain(spec)
    del fields["name"]
    try:
        return kind.open(fields)
    except InputError as error:
        raise InputError(f"config.extractor: {error}") from None
