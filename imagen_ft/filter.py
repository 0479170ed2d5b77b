"""Chooses the images of a synthetic set that are worth training on; the set stays as it is.

python -m imagen_ft.filter --config=configs/digits/filter.py --workdir=runs/digits/filter
python -m imagen_ft.filter --config=configs/cifar10/filter.py --workdir=runs/cifar10/filter
python -m imagen_ft.filter --config=configs/imagenet/filter.py --dry_run

A filter NAME of config.filters has a score, an extractor, and a limit or a share to keep:

    confidence    probability of the image's own class by a classifier, or by CLIP and the field
                  `templates`, above a limit; 'chance' is 1 / classes (He et al. 2023)
    margin        log probability of its own class minus that of the next best, above a limit
    nearest_real  the nearest real image is of its own class (the real filter of He et al. 2023)
    distance      mean distance to the k nearest real images of its class, below a limit

config.combine says whether an image must pass 'all' filters or 'any'. config.per_class draws that
many images of each class from those that pass, and adds the best others where fewer pass.
config.balance cuts every class to the size of the smallest. The work directory gets kept.json, a
list of records that every source takes as `keep`; random.json, the same number per class drawn
at random, for comparison; records.csv with every score; filter.json; and report.html with the best
and the worst images of each class. Features are cached in its folder `features`: the same command
with other limits takes seconds. The processes of a job (--coordinator) share every batch among
their devices.
"""

import ml_collections
import numpy as np

from classifiers.extractors.extractor import Extractor
from classifiers.extractors.features import features
from imagen_ft.evaluation.extractors import open_extractor, open_zero_shot
from imagen_ft.evaluation.image_sets import ImageSet, open_set
from imagen_ft.evaluation.references import check_order
from imagen_ft.filters import from_config, report
from imagen_ft.filters.from_config import Filter
from imagen_ft.filters.judging import Judged, OfClasses, See, judge, neighbourhoods_of_classes
from imagen_ft.filters.selection import check_per_class
from input_pipeline.imagenet import in_words
from launch.errors import InputError
from launch.files import json_digest
from launch.runtime import app
from launch.runtime.config import plain
from launch.runtime.devices import joining
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.locks import lock

define_flags = joining.define_flags
lacking = from_config.lacking


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config = args.config
    from_config.check(config)
    if args.dry_run:
        _describe(args)
        return
    # 1. Open extractors and sets, and check that their classes agree, before anything is written.
    extractors = _open_extractors(config)
    # Only extractors that resize take images of several sizes.
    mixed = all(extractor.transform is not None for extractor in extractors.values())
    synthetic = open_set("synthetic", "config.synthetic", config.synthetic, mixed)
    real = open_set("real", "config.real", config.real, mixed) if config.get("real") else None
    filters = from_config.make_filters(config, synthetic.source.class_names)
    _check_classes(filters, extractors, synthetic, real)
    # 2. CLIP becomes a classifier by the set's class names.
    judges = _judges(filters, extractors, synthetic)
    check_per_class(synthetic.source.labels, config.get("per_class", 0))
    on_first_process(lambda: lock(args.workdir))

    def see(one: Filter, images: ImageSet, tap: str) -> np.ndarray:
        extractor, folder = judges[one.name], args.workdir / "features"
        taps = {of.tap for of in filters if judges[of.name] is extractor} | {"features"}
        # One pass for all filters of an extractor. Of real images only features are needed.
        wanted = sorted(taps) if images is synthetic else ["features"]
        digest, size = images.digest(), config.batch_size
        return features(
            extractor, images.source, folder, wanted, size, digest=digest, name=images.name
        )[tap]

    # 3. Score and choose; then measure what was chosen, and report.
    judged = judge(config, filters, synthetic, real, see)
    measured = _measure(filters[0], synthetic, real, judged, see) if real else {}
    made_from = {
        "config": plain(config),
        "synthetic": synthetic.digest(),
        "real": real.digest() if real else None,
        "extractors": {name: extractor.made_from for name, extractor in judges.items()},
    }
    on_first_process(
        lambda: report.write(
            args.workdir,
            synthetic,
            filters,
            judged,
            measured,
            made_from,
            config.get("num_shown", 8),
        )
    )


def _describe(args: app.Arguments) -> None:
    try:
        extractors = _open_extractors(args.config)
    except InputError as error:
        # A dry run works without weights, too; then it cannot count parameters.
        app.describe(args)
        print(f"no parameters to count: {error}")
    else:
        app.describe(args, **{one.name: one.variables["params"] for one in extractors.values()})


def _open_extractors(config: ml_collections.ConfigDict) -> dict[str, Extractor]:
    """The extractors that filters name, each once, by the checksum of its fields."""
    extractors: dict[str, Extractor] = {}
    for name, spec in config.filters.items():
        digest = _digest(spec.extractor)
        if digest not in extractors:
            try:
                extractors[digest] = open_extractor(spec.extractor)
            except InputError as error:
                reason = str(error).replace("config.extractor", f"config.filters.{name}.extractor")
                raise InputError(reason) from None
    return extractors


def _judges(
    filters: list[Filter], extractors: dict[str, Extractor], synthetic: ImageSet
) -> dict[str, Extractor]:
    """The extractor of each filter by its name, those that take class names with the set's."""
    words = [in_words(name) for name in synthetic.source.class_names]
    judges = {}
    for one in filters:
        if one.needs_names:
            judges[one.name] = open_zero_shot(one.extractor, words, one.templates)
        else:
            judges[one.name] = extractors[_digest(one.extractor)]
    return judges


def _digest(spec: ml_collections.ConfigDict) -> str:
    return json_digest(plain(spec))


def _check_classes(
    filters: list[Filter],
    extractors: dict[str, Extractor],
    synthetic: ImageSet,
    real: ImageSet | None,
) -> None:
    """Raises `InputError` unless labels mean the same in the set, real images and classifiers."""
    names = synthetic.source.class_names
    if real is not None:
        # Names may differ, but not their number, nor the label of a name that occurs in both.
        others = real.source.class_names
        if len(others) != len(names):
            raise InputError(
                f"config.real must have the {len(names)} classes of the set, got {len(others)}; "
                "choose them by classes=[...] of its source"
            )
        check_order("config.real", others, "config.synthetic", names)
    for one in filters:
        # Classifiers with another number of classes fail in `judge`, with a message of their own.
        known = extractors[_digest(one.extractor)].class_names
        if one.kind.tap == "logits" and len(known) == len(names):
            check_order(f"config.filters.{one.name}.extractor", known, "config.synthetic", names)


def _measure(
    one: Filter, synthetic: ImageSet, real: ImageSet, judged: Judged, see: See
) -> dict[str, OfClasses]:
    """Recall and coverage of each class by all images, the kept ones, and the random part."""
    parts = {
        "all": np.ones(len(judged.kept), bool),
        "kept": judged.kept,
        "random": judged.random,
    }
    ours, theirs = (see(one, images, "features") for images in (synthetic, real))
    return neighbourhoods_of_classes(
        ours, synthetic.source.labels, theirs, real.source.labels, parts
    )


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
