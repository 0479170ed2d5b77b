"""The features of image sets, as measures need them."""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int

from classifiers.extractors.extractor import Extractor
from classifiers.extractors.features import features
from imagen_ft.evaluation.extractors import KINDS, Kind
from imagen_ft.evaluation.image_sets import ImageSet
from imagen_ft.evaluation.measures import MEASURES, Images
from imagen_ft.metrics.frechet import Labelled
from imagen_ft.metrics.result import Conditions
from launch.errors import InputError


def check_measures(field: str, measures: Sequence[str], extractor: str) -> None:
    """Raises `InputError` if a measure is unknown, listed twice, or not possible on an extractor.

    `field` is their place in the config, `extractor` the name of its row.
    """
    if not measures:
        raise InputError(f"{field} must list some of {', '.join(MEASURES)}, got none")
    kind = KINDS[extractor]
    for name in measures:
        if name not in MEASURES:
            raise InputError(f"{field} must be some of {', '.join(MEASURES)}, got {name!r}")
        if list(measures).count(name) > 1:
            raise InputError(f"{field} must list each once, got {name!r} twice; drop one")
    # Some measures need outputs that only some extractors have.
    for name, able, needed in (
        ("spatial_frechet", kind.has_spatial, "needs Inception"),
        ("inception_score", kind.logits, "needs a classifier"),
        ("recognizability", kind.has_classes, "needs a classifier of the images' classes"),
    ):
        if name in measures and not able:
            raise InputError(
                f"{field}: {name!r} {needed}, got extractor {extractor!r}; leave it out"
            )


def taps_for(measures: Sequence[str], kind: Kind) -> tuple[str, ...]:
    """The outputs of an extractor that measures need; 'features' first."""
    # All other measures work on the pooled features.
    taps = {"spatial_frechet": "spatial"}
    taps |= dict.fromkeys(("inception_score", "recognizability"), kind.logits)
    return tuple(dict.fromkeys(["features", *(taps[name] for name in measures if name in taps)]))


def as_images(
    outputs: Mapping[str, np.ndarray], labels: Int[np.ndarray, " n"], num_classes: int, kind: Kind
) -> Images:
    """Converts outputs by tap, one row an image, for `Measures`."""

    def flat(name: str) -> np.ndarray | None:
        # [n, h, w, c] to [n, h * w * c]: ADM flattens its spatial features in this order, too.
        return outputs[name].reshape(len(outputs[name]), -1) if name in outputs else None

    pooled = Labelled(outputs["features"], labels)
    return Images(pooled, flat("spatial"), flat(kind.logits), num_classes)


def see(
    images: ImageSet,
    extractor: Extractor,
    kind: Kind,
    measures: Sequence[str],
    folder: epath.Path,
    batch_size: int,
) -> Images:
    """What an extractor sees in a set, which is drawn if necessary; every process must call it.

    `folder` caches features; `batch_size` is over all devices. Raises `InputError` as
    `classifiers.extractors.features.features` does.
    """
    outputs = features(
        extractor,
        images.source,
        folder,
        taps_for(measures, kind),
        batch_size,
        # The checksum is the key in the cache: a set whose features are there need not be drawn.
        digest=images.digest(),
        prepare=images.prepare,
        name=images.name,
    )
    return as_images(outputs, images.source.labels, len(images.source.class_names), kind)


def conditions(
    extractor: Extractor, images: Images, uint8_rule: str, file_format: str
) -> Conditions:
    """What all results on a set depend on, besides the real images."""
    # Classes without images count as well: a set without some of them is not balanced.
    counts = np.bincount(images.pooled.labels, minlength=images.num_classes)
    return Conditions(
        extractor=extractor.name,
        weights_digest=extractor.digest,
        input_rule=extractor.rule,
        uint8_rule=uint8_rule,
        file_format=file_format,
        # Each measure fills in the reference that it used.
        reference_file_format=None,
        num_images=len(images),
        class_balance="balanced" if len(counts) > 1 and np.ptp(counts) == 0 else "drawn",
        reference_digest=None,
    )
