"""What sets are compared with: real images, held-out ones, or statistics that others published."""

import dataclasses
from collections.abc import Callable, Sequence

import ml_collections
from etils import epath

from classifiers.extractors.extractor import Extractor
from imagen_ft.evaluation.image_sets import ImageSet, check_spec, open_set
from imagen_ft.evaluation.measures import MEASURES, Images, Real
from imagen_ft.metrics import reference as npz
from imagen_ft.metrics.statistics import of_features
from launch.errors import InputError

STATISTICS = "reference.npz"


@dataclasses.dataclass(frozen=True)
class References:
    """The real side of a comparison, as a config names it."""

    statistics: npz.Reference | None  # of a file; None if they are to be computed from `source`
    source: ImageSet | None  # real images; None if there is only a file
    held_out: ImageSet | None  # other real images

    def digests(self) -> dict[str, str | None]:
        """Checksums of all that numbers depend on here, for JSON."""
        source, held_out = (
            None if images is None else images.digest() for images in (self.source, self.held_out)
        )
        digest = self.statistics.digest if self.statistics else None
        return {"statistics": digest, "source": source, "held_out": held_out}

    def real(self, see: Callable[[ImageSet], Images], digests: dict[str, str | None]) -> Real:
        """Features and statistics; `see` extracts the features of a set."""
        images = see(self.source) if self.source else None
        held_out = see(self.held_out) if self.held_out else None
        # A file of statistics takes precedence; features of `source` then serve the other measures.
        if self.statistics is not None:
            pooled, spatial = self.statistics.pooled, self.statistics.spatial
            statistics_format, digest = "unknown", self.statistics.digest
        else:
            assert images is not None and self.source is not None
            pooled = of_features(images.pooled.features)
            spatial = None if images.spatial is None else of_features(images.spatial)
            statistics_format, digest = self.source.file_format, str(digests["source"])
        return Real(
            pooled=pooled,
            spatial=spatial,
            images=images.pooled if images else None,
            held_out=held_out.pooled if held_out else None,
            statistics_digest=digest,
            images_digest=digests["source"],
            held_out_digest=digests["held_out"],
            statistics_format=statistics_format,
            images_format=self.source.file_format if self.source else None,
        )


def check_references(config: ml_collections.ConfigDict) -> None:
    """Raises `InputError` if `config.reference` lacks what a measure needs, or a field is wrong."""
    reference = config.reference
    for name in ("source", "held_out"):
        if reference[name]:
            check_spec(f"config.reference.{name}", reference[name])
    for measure in config.measures:
        needed = MEASURES[measure].needs
        # Statistics can come from a file or from images; other needs only from images.
        if needed == "statistics":
            if not (reference.statistics or reference.source):
                raise InputError(
                    f"config.reference must name statistics or a source for {measure!r}, got "
                    "neither; set one of them"
                )
        elif needed and not reference[needed]:
            raise InputError(
                f"config.reference.{needed} must be a set of real images for {measure!r}, got "
                "none; choose one, or leave the measure out of config.measures"
            )


def open_references(
    config: ml_collections.ConfigDict, extractor: Extractor, mixed: bool
) -> References:
    """Opens what `config.reference` names; for `mixed` see `open_set`.

    Raises `InputError` if something is missing or damaged, if the statistics were made with another
    extractor, or if they lack what a measure needs.
    """
    reference = config.reference
    # 1. The file. Ours say what made them; for others the user has to know.
    statistics = npz.read(reference.statistics) if reference.statistics else None
    if statistics is not None:
        made_by = statistics.extractor
        if made_by is not None and made_by != extractor.made_from:
            raise InputError(
                f"{reference.statistics} must be from {_named(extractor.made_from)}, got "
                f"{_named(made_by)}; compute statistics with the same extractor and rule"
            )
        if "spatial_frechet" in config.measures and statistics.spatial is None:
            raise InputError(
                f"{reference.statistics} must hold mu_s and sigma_s for 'spatial_frechet', got "
                "neither; leave it out of config.measures, or give another file"
            )
    # 2. The images.
    source, held_out = (
        open_set(f"reference.{name}", f"config.reference.{name}", reference[name], mixed)
        if reference[name]
        else None
        for name in ("source", "held_out")
    )
    return References(statistics, source, held_out)


def check_classes(sets: Sequence[ImageSet], references: References, apart: bool) -> None:
    """Raises `InputError` if labels mean different things in the sets, where classes matter.

    Names may differ, as a folder's do from a prompt's. But all sets must have as many classes as
    the real one, and a name that occurs in two of them must have the same label.
    """
    real = references.source
    if not apart or real is None:
        return
    others = [*sets, *([references.held_out] if references.held_out else [])]
    for other in others:
        ours, theirs = other.source.class_names, real.source.class_names
        if len(ours) != len(theirs):
            raise InputError(
                f"{other.name} must have the {len(theirs)} classes of config.reference.source for "
                f"'classes_apart', got {len(ours)}; leave it out of config.measures"
            )
        check_order(other.name, ours, "config.reference.source", theirs)


def check_order(name: str, ours: Sequence[str], other: str, theirs: Sequence[str]) -> None:
    """Raises `InputError` if a class name that occurs in both sets has different labels."""
    number = {class_name: label for label, class_name in enumerate(theirs)}
    for label, class_name in enumerate(ours):
        if number.get(class_name, label) != label:
            raise InputError(
                f"{name}: label {label} is {class_name!r}, which is {number[class_name]} in "
                f"{other}; give both the same order of classes"
            )


def write_statistics(path: epath.Path, real: Real, extractor: Extractor) -> None:
    """Writes the statistics of the real images, as a reference for other commands."""
    npz.write(path, real.pooled, real.spatial, extractor.made_from)


def _named(made_from: dict) -> str:
    name, rule, digest = (str(made_from.get(key)) for key in ("name", "rule", "digest"))
    return f"{name} ({rule}, weights {digest[:12]})"
