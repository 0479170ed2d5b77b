"""All measures of one image set against the real ones, from features."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Int

from imagen_ft.metrics.classes import diversity, recognizability
from imagen_ft.metrics.copying import copying
from imagen_ft.metrics.frechet import (
    Labelled,
    distance_at_infinity,
    distance_of_features,
    frechet_distance,
    relative_distance,
    relative_distance_of_classes,
)
from imagen_ft.metrics.inception_score import inception_score
from imagen_ft.metrics.kernel_distance import kernel_distance
from imagen_ft.metrics.neighbours import Convention, neighbourhoods
from imagen_ft.metrics.result import Conditions, Result
from imagen_ft.metrics.sliced_distance import sliced_distance
from imagen_ft.metrics.statistics import Statistics, of_features
from launch.errors import InputError

# For subsets of equal size: fixed, so that results repeat.
_DRAW_SEED = 0


@dataclasses.dataclass(frozen=True)
class Images:
    """What the extractor sees in a set."""

    pooled: Labelled
    spatial: np.ndarray | None = None  # [n, 2023], flattened, for sFID
    # [n, classes], for inception score and recognizability; both are None unless asked for.
    logits: np.ndarray | None = None
    num_classes: int = 0  # of the set, whether or not all have images

    def __len__(self) -> int:
        return len(self.pooled.labels)


@dataclasses.dataclass(frozen=True)
class Real:
    """What image sets are compared with."""

    # Statistics of the real images, or of a file.
    pooled: Statistics
    spatial: Statistics | None
    # Features of the real images, None if there is only a file; and of other real images.
    images: Labelled | None
    held_out: Labelled | None
    # Checksums and file formats, see `Conditions`.
    statistics_digest: str
    images_digest: str | None
    held_out_digest: str | None
    statistics_format: str
    images_format: str | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """All results of one set."""

    results: list[Result]  # in the order of config.measures
    # By label `num_images`, `distance` and, with held-out images, `relative`.
    classes: dict[int, dict[str, float]]
    # Of the images most like copies: positions `image` and `nearest`, `distance`, `ratio`.
    worst: list[dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        # JSON has only strings for keys: labels become numbers again in `from_json`.
        return dataclasses.asdict(self) | {
            "classes": {str(label): row for label, row in self.classes.items()}
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Measured":
        """The inverse of `to_json`."""
        results = []
        for fields in content["results"]:
            # JSON has made lists of tuples, which would not compare equal.
            settings = tuple((name, value) for name, value in fields["conditions"]["settings"])
            conditions = Conditions(**{**fields["conditions"], "settings": settings})
            results.append(Result(**{**fields, "conditions": conditions}))
        classes = {int(label): row for label, row in content["classes"].items()}
        return cls(results, classes, content["worst"])


class Measures:
    """Takes the measures of `config.measures`, one after the other.

    Add a method that yields results, and a row of `MEASURES`. Methods find features in `self._ours`
    [n, d] and `self._theirs()` [m, d].
    """

    def __init__(
        self, config: ml_collections.ConfigDict, images: Images, real: Real, common: Conditions
    ):
        self._config, self._images, self._real = config, images, real
        self._ours = images.pooled.features
        self._common = common
        self._pooled: Statistics | None = None
        self._classes: dict[int, dict[str, float]] = {}
        self._worst: list[dict[str, float]] = []

    def take(self, suffix: str, tell: Callable[[str], Any]) -> Measured:
        """Takes them, and calls `tell` with each measure's name afterwards.

        `suffix` goes behind the names of results, where the extractor is not Inception.
        """
        results = []
        for name in self._config.measures:
            results += list(MEASURES[name].take(self))
            tell(name)
        if suffix:
            # Only on Inception is a Frechet distance called FID: 'fid' becomes 'fd (NAME)'.
            names = dict(NAMES.values())
            results = [
                dataclasses.replace(
                    result, measure=f"{names.get(result.measure, result.measure)}{suffix}"
                )
                for result in results
            ]
        return Measured(results, self._classes, self._worst)

    def _statistics(self) -> Statistics:
        # Two measures need it, and a covariance [d, d] takes seconds.
        if self._pooled is None:
            self._pooled = of_features(self._ours)
        return self._pooled

    def _on_statistics(self, **fields: Any) -> Conditions:
        real = self._real
        return dataclasses.replace(
            self._common,
            reference_digest=real.statistics_digest,
            reference_file_format=real.statistics_format,
            **fields,
        )

    def _on_images(self, **fields: Any) -> Conditions:
        real = self._real
        return dataclasses.replace(
            self._common,
            reference_digest=real.images_digest,
            reference_file_format=real.images_format,
            **fields,
        )

    def _frechet(self) -> Iterator[Result]:
        distance = frechet_distance(
            self._statistics(), self._real.pooled, self._config.allow_few_images
        )
        yield Result("fid", distance, self._on_statistics())

    def _spatial_frechet(self) -> Iterator[Result]:
        assert self._images.spatial is not None and self._real.spatial is not None
        ours = of_features(self._images.spatial)
        distance = frechet_distance(ours, self._real.spatial, self._config.allow_few_images)
        yield Result("sfid", distance, self._on_statistics())

    def _frechet_infinity(self) -> Iterator[Result]:
        fields = self._config.frechet_infinity
        few = self._config.allow_few_images
        distance = distance_at_infinity(
            self._ours, self._real.pooled, **fields, allow_few_images=few
        )
        yield Result("fid infinity", distance, self._on_statistics(settings=_settings(fields)))

    def _inception_score(self) -> Iterator[Result]:
        assert self._images.logits is not None
        fields = self._config.inception_score
        score, deviation = inception_score(self._images.logits, **fields)
        # No reference: it looks at no real images.
        conditions = dataclasses.replace(self._common, settings=_settings(fields))
        yield Result("is", score, conditions, deviation)

    def _kernel(self) -> Iterator[Result]:
        fields = self._config.kernel
        distance, deviation = kernel_distance(self._ours, self._theirs(), **fields)
        yield Result("kid", distance, self._on_images(settings=_settings(fields)), deviation)

    def _sliced(self) -> Iterator[Result]:
        fields = self._config.sliced
        distance = sliced_distance(self._ours, self._theirs(), **fields)
        yield Result("mind", distance, self._on_images(settings=_settings(fields)))

    def _precision_recall(self) -> Iterator[Result]:
        fields = self._config.precision_recall
        shares = neighbourhoods(self._ours, self._theirs(), Convention(**fields))
        for name in ("precision", "recall"):
            yield Result(name, getattr(shares, name), self._on_images(**fields))

    def _density_coverage(self) -> Iterator[Result]:
        fields = self._config.density_coverage
        shares = neighbourhoods(self._ours, self._theirs(), Convention(**fields))
        for name in ("density", "coverage"):
            yield Result(name, getattr(shares, name), self._on_images(**fields))

    def _relative(self) -> Iterator[Result]:
        # The larger of the two sets is subsampled, as the distance depends on the number of images.
        held_out = self._real.held_out
        assert held_out is not None
        count = min(len(self._ours), len(held_out.labels))
        some = [_draw(features, count) for features in (self._ours, held_out.features)]
        ratio = relative_distance(
            of_features(some[0]),
            of_features(some[1]),
            self._real.pooled,
            self._config.allow_few_images,
        )
        settings = (("held_out", str(self._real.held_out_digest)), ("seed", _DRAW_SEED))
        yield Result("relative fd", ratio, self._on_statistics(num_images=count, settings=settings))

    def _classes_apart(self) -> Iterator[Result]:
        images, real, held_out = self._images.pooled, self._real.images, self._real.held_out
        assert real is not None
        # A row a class goes into the table of classes; the result is the mean over classes.
        ratios = relative_distance_of_classes(images, held_out, real) if held_out else {}
        for label in np.unique(images.labels).tolist():
            ours, theirs = images.of_class(label), real.of_class(label)
            if min(len(ours), len(theirs)) < 2:
                continue  # a single image has no covariance
            row: dict[str, float] = {"num_images": len(ours)}
            row["distance"] = distance_of_features(ours, theirs)
            if label in ratios:
                row["relative"] = ratios[label]
            self._classes[label] = row
        if not self._classes:
            raise InputError(
                "config.measures: 'classes_apart' needs a class with at least 2 synthetic and 2 "
                "real images, got none; leave it out"
            )
        mean = float(np.mean([row["distance"] for row in self._classes.values()]))
        settings = (("classes", len(self._classes)),)
        yield Result("class fd", mean, self._on_images(settings=settings))

    def _recognizability(self) -> Iterator[Result]:
        logits, count = self._images.logits, self._images.num_classes
        assert logits is not None
        if logits.shape[1] != count:
            raise InputError(
                f"config.measures: 'recognizability' needs a classifier of the set's {count} "
                f"classes, got one of {logits.shape[1]}; leave it out"
            )
        score, _ = recognizability(logits.argmax(axis=1), self._images.pooled.labels)
        yield Result("recognizability", score, self._common)

    def _diversity(self) -> Iterator[Result]:
        # No reference; it is to be compared with the diversity of a set of real images.
        value, _ = diversity(self._ours, self._images.pooled.labels)
        yield Result("diversity", value, self._common)

    def _copying(self) -> Iterator[Result]:
        # The worst go to the page as pictures, and two numbers into the table.
        found = copying(self._ours, self._theirs())
        for i in found.worst(self._config.num_worst).tolist():
            self._worst.append(
                {
                    "image": i,
                    "nearest": int(found.nearest[i]),
                    "distance": float(found.distance[i]),
                    "ratio": float(found.ratio[i]),
                }
            )
        yield Result("authentic", found.authentic_share, self._on_images())
        yield Result("copy ratio", float(np.median(found.ratio)), self._on_images())

    def _theirs(self) -> np.ndarray:
        assert self._real.images is not None
        return self._real.images.features


@dataclasses.dataclass(frozen=True)
class Measure:
    """A row of the table of measures."""

    take: Callable[[Measures], Iterator[Result]]
    needs: str = ""  # of the real images: 'statistics', 'source', 'held_out' or ''
    # If sweeps may choose by it: its first result's name on Inception, and on other extractors.
    names: tuple[str, str] | None = None
    has_arguments: bool = False  # whether the config has a field of its name with arguments
    higher: tuple[str, ...] = ()  # names of its results of which higher values are better


# In the order in which messages list them.
MEASURES = {
    "frechet": Measure(Measures._frechet, "statistics", ("fid", "fd")),
    "spatial_frechet": Measure(Measures._spatial_frechet, "statistics", ("sfid", "sfd")),
    "frechet_infinity": Measure(
        Measures._frechet_infinity, "statistics", ("fid infinity", "fd infinity"), True
    ),
    "inception_score": Measure(Measures._inception_score, "", ("is", "is"), True, higher=("is",)),
    "kernel": Measure(Measures._kernel, "source", ("kid", "kd"), True),
    "sliced": Measure(Measures._sliced, "source", ("mind", "mind"), True),
    "precision_recall": Measure(
        Measures._precision_recall, "source", has_arguments=True, higher=("precision", "recall")
    ),
    "density_coverage": Measure(
        Measures._density_coverage, "source", has_arguments=True, higher=("density", "coverage")
    ),
    "relative": Measure(Measures._relative, "held_out", ("relative fd", "relative fd")),
    "classes_apart": Measure(Measures._classes_apart, "source", ("class fd", "class fd")),
    "recognizability": Measure(Measures._recognizability, higher=("recognizability",)),
    "diversity": Measure(Measures._diversity, higher=("diversity",)),
    "copying": Measure(Measures._copying, "source", higher=("authentic", "copy ratio")),
}
NAMES = {name: row.names for name, row in MEASURES.items() if row.names}
_HIGHER = {name for row in MEASURES.values() for name in row.higher}
WITH_ARGUMENTS = tuple(name for name, row in MEASURES.items() if row.has_arguments)


def higher_is_better(name: str) -> bool:
    """Whether higher values of a result are better; 'fd (NAME)' counts as 'fd'."""
    return name.partition(" (")[0] in _HIGHER


def _settings(fields: ml_collections.ConfigDict) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(fields.items()))


def _draw(features: np.ndarray, count: int) -> np.ndarray:
    # Sorted, so that a full draw keeps the order of the images.
    order: Int[np.ndarray, " n"] = np.random.default_rng(_DRAW_SEED).permutation(len(features))
    return features[np.sort(order[:count])]
