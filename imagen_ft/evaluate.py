r"""Measures sets of images against real ones, and compares them.

python -m imagen_ft.evaluate --config=configs/digits/evaluate_images.py --workdir=runs/digits/images
python -m imagen_ft.evaluate --config=configs/imagenet/evaluate_images.py:synthetic=data/set \
    --workdir=runs/images
python -m imagen_ft.evaluate --config=configs/imagenet/evaluate_images.py:sampled=10000 \
    --workdir=runs/drawn

A set NAME of config.sets is a synthetic set, a folder of images, a set of TFDS or Parquet files, an
npz of samples, or a cascade (a config of stages), whose images are drawn when they are needed,
deleted once they have been measured, and written nowhere else unless `write` names an npz.
config.measures lists what is measured: Frechet distances (called FID and sFID only on Inception),
inception score, kernel and sliced distances, precision, recall, density, coverage, the Frechet
distance relative to that of held-out real images (1 is as good as fresh real images), the distance
of each class by itself, recognizability and diversity, the Frechet distance at infinitely many
images, and copies of real images. The work directory gets evaluation.json, with everything that
each number depends on, report.html, and reference.npz, the statistics of the real images. Features
and results are cached in its folders `features` and `measured`: the same command computes only what
is missing. The processes of a job (--coordinator) share every batch among their devices.
"""

import functools
from typing import Any

import ml_collections
from etils import epath
from tqdm import tqdm

from classifiers.extractors.extractor import Extractor
from imagen_ft.evaluation import report
from imagen_ft.evaluation.extractors import Kind, check_extractor, open_extractor
from imagen_ft.evaluation.image_sets import ImageSet
from imagen_ft.evaluation.lacking import lacking_in_measuring, lacking_in_sets
from imagen_ft.evaluation.measures import WITH_ARGUMENTS, Images, Measured, Measures
from imagen_ft.evaluation.references import (
    STATISTICS,
    References,
    check_classes,
    check_references,
    open_references,
    write_statistics,
)
from imagen_ft.evaluation.sampled import check_sets, open_sets
from imagen_ft.evaluation.seeing import check_measures, conditions, see
from launch.errors import InputError
from launch.files import json_digest, read_sealed, write_sealed
from launch.runtime import app
from launch.runtime.config import plain
from launch.runtime.devices import joining
from launch.runtime.devices.distributed import decide_on_first_process, on_first_process
from launch.runtime.limits import BATCH, MOST, check_numbers
from launch.runtime.locks import lock
from launch.runtime.optional_fields import Defaults

define_flags = joining.define_flags
# Version of the kept results: raise it when numbers change their meaning.
_FORMAT = 1
# What results depend on besides images: arguments of measures, and how many copies are shown.
_SETTINGS = ("measures", "allow_few_images", *WITH_ARGUMENTS, "num_worst")


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Optional fields that the config leaves out and the command line can set."""
    return {**lacking_in_sets(config.sets), **lacking_in_measuring(config)}


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config = args.config
    # 1. Check all that needs no files.
    kind = check(config)
    if args.dry_run:
        _describe(args)
        return
    # 2. Open the extractor, the real images and the sets, before anything is written.
    extractor = open_extractor(config.extractor)
    mixed = extractor.transform is not None
    references = open_references(config, extractor, mixed)
    real = references.source.source if references.source else None
    sets = open_sets(config.sets, mixed, real, args.workdir / "drawn")
    check_classes(sets, references, "classes_apart" in config.measures)
    # 3. Features and measures; those that are kept are not computed again.
    on_first_process(lambda: lock(args.workdir))
    measured = _measure(config, args.workdir, kind, extractor, sets, references)
    # 4. Keep only those drawn images that the report shows, then write it.
    for images in sets:
        if images.drawn:
            _leave(images, config.sets[images.name].get("write"), measured[images.name])
    on_first_process(
        lambda: report.write(args.workdir, config, extractor, sets, references, measured)
    )


def check(config: ml_collections.ConfigDict) -> Kind:
    """Checks all of a config that needs no files; returns the row of its extractor.

    Raises `InputError` if a field is wrong.
    """
    check_sets(config.sets)
    kind = check_extractor(config.extractor)
    check_measures("config.measures", config.measures, config.extractor.name)
    check_numbers(config, {"batch_size": BATCH, "num_worst": (0, MOST)})
    check_references(config)
    return kind


def _describe(args: app.Arguments) -> None:
    try:
        extractor = open_extractor(args.config.extractor)
    except InputError as error:
        # A dry run works without weights, too; then it cannot count parameters.
        app.describe(args)
        print(f"no parameters to count: {error}")
    else:
        app.describe(args, **{extractor.name: extractor.variables["params"]})


def _leave(images: ImageSet, path: str | None, measured: Measured) -> None:
    drawn = images.drawn
    assert drawn is not None
    # Images that were dropped in an earlier run are drawn again, but only if the npz is missing.
    if path and not decide_on_first_process(lambda: drawn.is_written(epath.Path(path))):
        drawn.draw()
        on_first_process(lambda: drawn.write_npz(epath.Path(path)))
    drawn.drop(report.shown(images, measured))


def _measure(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    kind: Kind,
    extractor: Extractor,
    sets: list[ImageSet],
    references: References,
) -> dict[str, Measured]:
    """The results of each set by name, on all processes; kept ones are not computed again."""

    def look(images: ImageSet) -> Images:
        folder = workdir / "features"
        return see(images, extractor, kind, config.measures, folder, config.batch_size)

    # 1. Find what is kept. The first process reads files, so that all agree on what is missing.
    digests = decide_on_first_process(references.digests)
    origins = decide_on_first_process(
        lambda: [_made_from(config, extractor, images, digests) for images in sets]
    )
    kept = decide_on_first_process(
        lambda: [
            _read(workdir, images, origin) for images, origin in zip(sets, origins, strict=True)
        ]
    )
    if not all(kept):
        # 2. Features of the real images, only if any set has to be measured.
        real = references.real(look, digests)
        if references.statistics is None:
            on_first_process(lambda: write_statistics(workdir / STATISTICS, real, extractor))
        suffix = kind.suffix.format(extractor.name)
        for i in (i for i in range(len(sets)) if not kept[i]):
            images = look(sets[i])
            # 3. All processes extract features, but one computes the measures.
            common = conditions(extractor, images, sets[i].uint8_rule, sets[i].file_format)
            measures = Measures(config, images, real, common)
            take = functools.partial(_take, sets[i].name, len(config.measures), measures, suffix)
            kept[i] = decide_on_first_process(take)
            on_first_process(functools.partial(_keep, workdir, sets[i], origins[i], kept[i]))
    return {
        images.name: Measured.from_json(content) for images, content in zip(sets, kept, strict=True)
    }


def _take(name: str, count: int, measures: Measures, suffix: str) -> dict[str, Any]:
    try:
        with tqdm(total=count, unit="measure", desc=f"measures of {name}") as bar:

            def tell(measure: str) -> None:
                bar.set_postfix_str(measure)
                bar.update()

            return measures.take(suffix, tell).to_json()
    except InputError as error:
        raise InputError(f"config.sets.{name}: {error}") from None


def _made_from(
    config: ml_collections.ConfigDict,
    extractor: Extractor,
    images: ImageSet,
    digests: dict[str, str | None],
) -> dict[str, Any]:
    """All that the results of a set depend on, as JSON."""
    return {
        "format": _FORMAT,
        "extractor": extractor.made_from,
        "images": images.digest(),
        "labels": json_digest([images.source.class_names, images.source.labels.tolist()]),
        "written": [images.file_format, images.uint8_rule],
        "reference": digests,
        "settings": {name: plain(config[name]) for name in _SETTINGS},
    }


def _path(workdir: epath.Path, images: ImageSet) -> epath.Path:
    return workdir / "measured" / f"{images.name}.json"


def _read(
    workdir: epath.Path, images: ImageSet, made_from: dict[str, Any]
) -> dict[str, Any] | None:
    try:
        # Missing, damaged or of other settings: measure again.
        content = read_sealed(_path(workdir, images))
    except InputError:
        return None
    return content["measured"] if content.get("made_from") == made_from else None


def _keep(
    workdir: epath.Path, images: ImageSet, made_from: dict[str, Any], measured: dict[str, Any]
) -> None:
    path = _path(workdir, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, {"made_from": made_from, "measured": measured})


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
