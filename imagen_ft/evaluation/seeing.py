"""What an extractor sees in images, as far as measures ask for it."""

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
    """Looks whether there are such measures, and whether an extractor can be measured with them.

    Args:
        field: where they stand in the config.
        measures: names of `MEASURES`.
        extractor: name of its row.

    Raises:
        InputError: there is none, one twice, an unknown one, or one that the extractor has not.
    """
    if not measures:
        raise InputError(f"{field} must name some of {', '.join(MEASURES)}, got none")
    kind = KINDS[extractor]
    for name in measures:
        if name not in MEASURES:
            raise InputError(
                f"{field} must be of {', '.join(MEASURES)}, got {name!r}; take one of these"
            )
        if list(measures).count(name) > 1:
            raise InputError(f"{field} must name each once, got {name!r} twice; drop one")
    for name, able, needed in (
        ("spatial_frechet", kind.has_spatial, "is on Inception alone"),
        ("inception_score", kind.logits, "needs a classifier"),
        ("recognizability", kind.has_classes, "needs a classifier of the images' classes"),
    ):
        if name in measures and not able:
            raise InputError(
                f"{field}: {name!r} {needed}, got extractor {extractor!r}; leave it out"
            )


def taps_for(measures: Sequence[str], kind: Kind) -> tuple[str, ...]:
    """The outputs of an extractor that measures need."""
    taps = {"spatial_frechet": "spatial"}
    taps |= dict.fromkeys(("inception_score", "recognizability"), kind.logits)
    return tuple(dict.fromkeys(["features", *(taps[name] for name in measures if name in taps)]))


def as_images(
    outputs: Mapping[str, np.ndarray], labels: Int[np.ndarray, " n"], num_classes: int, kind: Kind
) -> Images:
    """Outputs by tap, as measures take them.

    Args:
        outputs: of `taps_for`, one row an image.
        labels: of each image.
        num_classes: that the labels are of.
        kind: the row of the extractor.
    """

    def flat(name: str) -> np.ndarray | None:
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
    """What an extractor sees in a set; all processes have to call it.

    Args:
        images: the set; one that is drawn is drawn if that has to be.
        extractor: the network.
        kind: its row.
        measures: that are to be taken.
        folder: where features are kept.
        batch_size: images at a time, over all devices.

    Raises:
        InputError: see `classifiers.extractors.features.features`.
    """
    outputs = features(
        extractor,
        images.source,
        folder,
        taps_for(measures, kind),
        batch_size,
        digest=images.digest(),
        prepare=images.prepare,
        name=images.name,
    )
    return as_images(outputs, images.source.labels, len(images.source.class_names), kind)


def conditions(
    extractor: Extractor, images: Images, uint8_rule: str, file_format: str
) -> Conditions:
    """What all results on a set depend on besides the real images.

    Args:
        extractor: of the features.
        images: what it sees in the set.
        uint8_rule: how floats became uint8.
        file_format: of the set's files.
    """
    counts = np.bincount(images.pooled.labels, minlength=images.num_classes)
    return Conditions(
        extractor=extractor.name,
        weights_digest=extractor.digest,
        input_rule=extractor.rule,
        uint8_rule=uint8_rule,
        file_format=file_format,
        reference_file_format=None,
        num_images=len(images),
        class_balance="balanced" if len(counts) > 1 and np.ptp(counts) == 0 else "drawn",
        reference_digest=None,
    )
