"""The filters of a config: what each judges by, and when an image passes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from classifiers.clip import templates
from imagen_ft.evaluation.extractors import KINDS, check_extractor
from imagen_ft.evaluation.image_sets import check_spec
from imagen_ft.evaluation.lacking import lacking_in_images
from imagen_ft.filters.scores import CHANCE, SCORES, Score
from imagen_ft.filters.selection import COMBINATIONS, Rule
from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.limits import BATCH, MOST, SEED, check_numbers
from launch.runtime.optional_fields import Defaults, Mixed, below, unset

# Fields of a filter. `limit` may be a number, 'chance' or a number for each class, and `templates`
# a name or sentences: `Mixed` says which types the command line takes.
_NEEDED = ("score", "extractor")
_OPTIONAL: dict[str, Any] = {
    "limit": Mixed(unset(float), (float, str, tuple)),
    "share": unset(float),
    "each_class": True,
    "k": 5,
    "templates": Mixed("1", (str, tuple)),
}


@dataclasses.dataclass(frozen=True)
class Filter:
    """A row of `config.filters`."""

    name: str
    score: str  # its row of `SCORES`
    # As `imagen_ft.evaluation.extractors.open_extractor` takes it.
    extractor: ml_collections.ConfigDict
    rule: Rule
    k: int  # real images that a distance is averaged over
    templates: str | Sequence[str]  # sentences that tell CLIP the classes

    @property
    def kind(self) -> Score:
        """The row of the table of scores."""
        return SCORES[self.score]

    @property
    def tap(self) -> str:
        """The output of the extractor that its score needs."""
        # Extractors call their logits differently.
        tap = self.kind.tap
        return KINDS[self.extractor.name].logits or tap if tap == "logits" else tap

    @property
    def needs_names(self) -> bool:
        """Whether its extractor must be given the class names."""
        return self.kind.tap == "logits" and KINDS[self.extractor.name].takes_names

    def describe(self) -> str:
        """Its rule in a few words, such as 'confidence > 0.1'."""
        rule = self.rule
        if rule.share is not None:
            of = "of each class" if rule.each_class else "of the set"
            return f"{self.score}: the best {100 * rule.share:g}% {of}"
        sign = ">" if rule.best == "highest" else "<"
        one = isinstance(rule.limit, float | int)
        return f"{self.score} {sign} {f'{rule.limit:g}' if one else 'the limit of its class'}"


def lacking(config: Fields) -> Defaults:
    """Optional fields that the config leaves out and the command line can set."""
    # 1. The task's own fields, and those of both sets.
    own = {"combine": "all", "per_class": 0, "balance": False, "seed": 0, "num_shown": 8}
    fields = below("", config, own)
    fields |= lacking_in_images("synthetic", config.get("synthetic") or {})
    fields |= lacking_in_images("real", config.get("real") or {})
    # 2. Those of each filter and its extractor.
    for name, spec in (config.get("filters") or {}).items():
        fields |= below(f"filters.{name}", spec, _OPTIONAL)
        extractor = spec.get("extractor") or {}
        kind = KINDS.get(extractor.get("name", ""))
        of_extractor = kind.fields if kind else {"name": unset(str)}
        fields |= below(f"filters.{name}.extractor", extractor, of_extractor)
    return fields


def check(config: ml_collections.ConfigDict) -> None:
    """Checks all of a config that needs no files; raises `InputError` if a field is wrong."""
    check_spec("config.synthetic", config.synthetic)
    if config.get("real"):
        check_spec("config.real", config.real)
    if not config.filters:
        raise InputError("config.filters must have at least one filter, got none; add one")
    for name, spec in config.filters.items():
        _check_filter(f"config.filters.{name}", spec, bool(config.get("real")))
    if (combine := config.get("combine", "all")) not in COMBINATIONS:
        raise InputError(
            f"config.combine must be one of {', '.join(COMBINATIONS)}, got {combine!r}"
        )
    if type(balance := config.get("balance", False)) is not bool:
        raise InputError(f"config.balance must be True or False, got {balance!r}")
    numbers = {"per_class": (0, MOST), "seed": SEED, "num_shown": (1, MOST), "batch_size": BATCH}
    check_numbers(config, numbers)


def make_filters(config: ml_collections.ConfigDict, class_names: tuple[str, ...]) -> list[Filter]:
    """The filters of a config that `check` has passed, for a set of these classes.

    Raises `InputError` if a filter has several limits, but not one for each class.
    """
    filters = []
    for name, spec in config.filters.items():
        score, limit = SCORES[spec.score], spec.get("limit")
        # Without limit and share the score's own limit holds.
        if limit is None and spec.get("share") is None:
            limit = score.limit
        if limit == CHANCE:
            # 1 / classes: the probability of a guess.
            limit = 1 / len(class_names)
        if isinstance(limit, tuple | list) and len(limit) != len(class_names):
            raise InputError(
                f"config.filters.{name}.limit must be one number, or one for each of the "
                f"{len(class_names)} classes, got {len(limit)}; give that many"
            )
        rule = Rule(score.best, limit, spec.get("share"), spec.get("each_class", True))
        own = spec.get("k", 5), spec.get("templates", "1")
        filters.append(Filter(name, spec.score, spec.extractor, rule, *own))
    return filters


def _check_filter(field: str, spec: Fields, has_real: bool) -> None:
    # 1. Fields, and the score.
    allowed = (*_NEEDED, *_OPTIONAL)
    if unknown := sorted(set(spec) - set(allowed)):
        raise InputError(f"{field} has no field {unknown[0]!r}; use {', '.join(allowed)}")
    if missing := [name for name in _NEEDED if name not in spec]:
        raise InputError(f"{field} must have the field {missing[0]!r}, got none; set it")
    if (name := spec["score"]) not in SCORES:
        raise InputError(f"{field}.score must be one of {', '.join(SCORES)}, got {name!r}")
    score = SCORES[name]
    # 2. The extractor, and whether it gives what the score needs.
    try:
        kind = check_extractor(spec["extractor"])
    except InputError as error:
        raise InputError(str(error).replace("config.extractor", f"{field}.extractor")) from None
    if score.tap == "logits" and not (kind.has_classes or kind.takes_names):
        raise InputError(
            f"{field}.extractor must be a classifier of the set's classes, or clip, for the score "
            f"{name!r}, got {spec['extractor']['name']!r}; use one of these, or another score"
        )
    # 3. Other fields.
    templates.load(spec.get("templates", "1"))
    if score.needs_real and not has_real:
        raise InputError(
            f"config.real must be a set of real images for {field} (score {name!r}), got none; "
            "choose one"
        )
    check_numbers(spec, {"k": (1, MOST)}, field)
    if type(each := spec.get("each_class", True)) is not bool:
        raise InputError(f"{field}.each_class must be True or False, got {each!r}")
    _check_rule(field, spec, score)


def _check_rule(field: str, spec: Fields, score: Score) -> None:
    # At most one of them; at least one, unless the score has a limit of its own.
    limit, share = spec.get("limit"), spec.get("share")
    if limit is not None and share is not None:
        raise InputError(
            f"{field} must have a limit or a share, got both ({limit}, {share}); set only one"
        )
    if limit is None and share is None and score.limit is None:
        raise InputError(
            f"{field} must have a limit or a share for the score {spec['score']!r}, got neither; "
            "set one"
        )
    if limit is not None and not (limit == CHANCE and score.limit == CHANCE):
        numbers = limit if isinstance(limit, tuple | list) else (limit,)
        if not numbers or not all(_is_number(number) for number in numbers):
            also = f", or {CHANCE!r}" if score.limit == CHANCE else ""
            raise InputError(
                f"{field}.limit must be a number, or one per class{also}, got {limit!r}; set it"
            )
    if share is not None and not (_is_number(share) and 0 < share <= 1):
        raise InputError(f"{field}.share must be above 0 and at most 1, got {share!r}; set it")


def _is_number(value: Any) -> bool:
    # bool is a subclass of int.
    is_real = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_real and math.isfinite(value)
