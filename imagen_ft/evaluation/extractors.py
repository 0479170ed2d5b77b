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
    """A row of the table of extractors.

    Attributes:
        open: opens one, given its fields.
        fields: that it may have, with what holds without them.
        logits: its tap for the inception score; empty where it has none.
        suffix: how measures on it are told from those on Inception, with the extractor's name.
        has_spatial: whether sFID is on its spatial features.
        has_classes: whether it is a classifier of the images' own classes.
        takes_names: whether it can be made a classifier by the names of classes, as CLIP can.
    """

    open: Callable[[dict[str, Any]], Extractor]
    fields: Defaults
    logits: str
    suffix: str
    has_spatial: bool = False
    has_classes: bool = False
    takes_names: bool = False


def _inception(fields: dict[str, Any]) -> Extractor:
    return inception(fields.get("rule", "tf1"), fields.get("path") or None)


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
    """The row of an extractor.

    Args:
        spec: `name` and the fields of that extractor; inception: `rule`, and `path` unless its
            weights are where torch-fidelity and pytorch-fid put them; classifier: `path` of a run
            or an import, see `classifiers.extractors.classifier`; clip: `path`, see
            `classifiers.extractors.clip`; dinov2: see `classifiers.extractors.dinov2`.

    Raises:
        InputError: there is no such extractor, or a field is wrong.
    """
    name = spec.get("name")
    if name not in KINDS:
        raise InputError(
            f"config.extractor.name must be one of {', '.join(KINDS)}, got {name!r}; name one"
        )
    fields = KINDS[name].fields
    if unknown := sorted(set(spec) - {"name", *fields}):
        raise InputError(
            f"config.extractor has no field {unknown[0]!r}; {name} has {', '.join(fields)}"
        )
    if name != "inception" and not spec.get("path"):
        raise InputError(f"config.extractor.path must name the weights of {name}, got none; set it")
    return KINDS[name]


def open_zero_shot(
    spec: Fields, class_names: Sequence[str], named: str | Sequence[str]
) -> Extractor:
    """Opens an extractor that `takes_names`, with logits for these classes.

    Args:
        spec: see `check_extractor`.
        class_names: in words.
        named: the sentences, see `classifiers.clip.templates.load`.

    Raises:
        InputError: as `open_extractor`; or it has no tokenizer.
    """
    fields = plain(spec)
    del fields["name"]
    return zero_shot(ClipRun.open(**fields), class_names, templates.load(named))


def open_extractor(spec: Fields) -> Extractor:
    """Opens the extractor of a config, see `check_extractor`.

    Raises:
        InputError: as `check_extractor`; or its weights are missing, damaged or not finished.
    """
    kind = check_extractor(spec)
    fields = plain(spec)
    del fields["name"]
    try:
        return kind.open(fields)
    except InputError as error:
        raise InputError(f"config.extractor: {error}") from None
