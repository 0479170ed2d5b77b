r"""Classifies images by the names of their classes, with CLIP (Radford et al. 2021, section 3.1).

python -m classifiers.zero_shot --config=configs/clip/zero_shot_digits.py --workdir=runs/clip/digits
python -m classifiers.zero_shot --config=configs/clip/zero_shot.py --workdir=runs/clip/zero_shot
python -m classifiers.zero_shot --config=configs/clip/zero_shot.py:templates=1+80,sets=val+v2 \
    --workdir=runs/clip/v2

config.clips are runs of CLIP: imports of classifiers.weights, or trained ones. Each of
config.templates is a set of sentences: '1', '7' and '80' are CLIP's, 'own' those of
config.own_templates, each with {} for the class. A class is the mean of its sentences' features of
unit length. Every run with every set of sentences is one arm, on each of config.sets, which are as
in classifiers.evaluate: evaluation_NAME.json and a table give top-1, top-5, loss, calibration error
and accuracy by class; evaluation.png draws them. config.class_names says where the class names in
words come from: '' is the set's own names, 'imagenet' the 1,000 that CLIP's authors chose, anything
else a file with one name per line. Features are kept in the folder `features`, so that other
sentences take seconds. The processes of a job (--coordinator) share every batch of images among
their devices.
"""

from typing import Any

import ml_collections
import numpy as np
from etils import epath

from classifiers.clip import templates
from classifiers.clip.run import ClipRun
from classifiers.evaluation import scores, zero_shot
from classifiers.evaluation.image_sets import EvaluationSet, check_specs, open_sets
from classifiers.evaluation.results import summary, write
from classifiers.extractors.clip import kept_class_weights, of_run
from classifiers.extractors.features import features
from input_pipeline.class_names import MIXED
from input_pipeline.sources.lacking import lacking_in_source
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.devices import joining
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.limits import BATCH, MOST, check_numbers
from launch.runtime.locks import lock
from launch.runtime.optional_fields import Defaults, below, unset

OWN = "own"
define_flags = joining.define_flags


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config may leave out and the command line can set."""
    fields = below("", config, {"class_names": MIXED, "own_templates": ()})
    for name, spec in config.sets.items():
        path = f"sets.{name}"
        fields |= below(path, spec, {"label_map": "", "prepare": unset(str)})
        fields |= lacking_in_source(f"{path}.source", spec.get("source") or {})
    return fields


def main(args: app.Arguments) -> None:
    """Runs the command."""
    # 1. Check the config, and open runs and sets.
    config = args.config
    sentences = check(config)
    clips = _open_clips(config, needed=not args.dry_run)
    if args.dry_run:
        app.describe(args, **{clip.name: clip.run.shapes()["params"] for clip in clips})
        if not clips:
            print("no parameters to count: config.clips lists no runs")
        return
    sets = open_sets(config.sets)
    named = config.get("class_names", "")
    names = {name: zero_shot.names_in_words(one, named) for name, one in sets.items()}
    for clip in clips:
        clip.tokenizer  # noqa: B018 - only checks that it is there and fits
    # 2. Score every run with every set of sentences on every set of images.
    on_first_process(lambda: lock(args.workdir))
    results = {
        name: summary(one, _arms(args, clips, one, names[name], sentences), config.baseline)
        for name, one in sets.items()
    }
    # 3. Write the tables and the figure.
    on_first_process(lambda: write(args.workdir, results, config.baseline))


def check(config: ml_collections.ConfigDict) -> dict[str, tuple[str, ...]]:
    """The sentences by set of templates; raises InputError for a wrong field, needs no files."""
    check_specs(config.sets)
    limits = {"batch_size": BATCH, "calibration_bins": (1, MOST)}
    check_numbers(config, limits)
    if not config.templates:
        raise InputError("config.templates must list sets of sentences, got none; add '1'")
    own = config.get("own_templates", ())
    return {
        str(name): templates.load(own if name == OWN else str(name)) for name in config.templates
    }


def _open_clips(config: ml_collections.ConfigDict, needed: bool) -> list[ClipRun]:
    if not config.clips and needed:
        raise InputError("config.clips must list CLIP runs, got none; add one")
    paths = [epath.Path(path) for path in config.clips]
    if not needed and not all(path.exists() for path in paths):
        return []
    clips = [ClipRun.open(path, **config.checkpoint) for path in paths]
    by_name = {clip.name: clip for clip in clips}
    if len(by_name) < len(clips):
        raise InputError(
            "config.clips must be runs with different names, got one name twice; rename a folder"
        )
    return clips


def _arms(
    args: app.Arguments,
    clips: list[ClipRun],
    evaluation_set: EvaluationSet,
    names: tuple[str, ...],
    sentences: dict[str, tuple[str, ...]],
) -> dict[str, list[dict[str, Any]]]:
    config, arms = args.config, {}
    folder, source = args.workdir / "features", evaluation_set.source
    for clip in clips:
        # Computed once per run and set, and kept; sentences only change the class weights.
        of_images = features(
            of_run(clip),
            source,
            folder,
            batch_size=config.batch_size,
            name=f"{evaluation_set.name} by {clip.name}",
        )["features"]
        for key, chosen in sentences.items():
            weights = kept_class_weights(clip, names, chosen, folder)
            label_map = evaluation_set.label_map
            head = zero_shot.scale_and_bias(clip)
            said = zero_shot.scores_of_features(of_images, source.labels, weights, label_map, *head)
            # NaN would count as a wrong prediction without a word.
            if not np.isfinite(said["loss"]).all():
                raise InputError(f"{clip.run.path}: its outputs are NaN or infinite; leave it out")
            numbers = scores.summarise(
                said, source.labels, len(label_map.class_names), config.calibration_bins
            )
            arm = {**numbers, "attacks": {}, "checkpoint": clip.digest}
            arms[f"{clip.name} {key}"] = [arm]
    return arms


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
