"""Tunes the class weights of CLIP on few real images and on synthetic ones (He et al. 2023).

python -m classifiers.transfer --config=configs/clip/few_shot.py --workdir=runs/clip/few_shot
python -m classifiers.transfer --config=configs/clip/few_shot.py:loss=soft --workdir=runs/clip/soft
python -m classifiers.transfer --config=configs/clip/few_shot.py --dry_run

The image tower of config.clip stays frozen, batch norms in evaluation mode; its features are
computed once and kept in the folder `features`. With config.tuned the tower learns too: a number
means its last blocks and what follows them, 'whole' all of it, at config.tower_rate times the
learning rate (table 3 there; the class weights alone, 'head', were best). The class weights start
as those of classifiers.zero_shot, and are tuned on config.shots real images of each class, drawn by
seed, alone ('real') and together with the synthetic ones ('real+synthetic'); 0 shots are the
weights before tuning ('zero_shot'), and after tuning on synthetic images alone ('synthetic'). Real
images count by their labels; the loss of synthetic ones is config.loss: against the labels (hard),
against what the weights before tuning say of the image (soft), or a sum of both. config.strategy
trains on both kinds in every step ('mix', the sum of their losses), or on one after the other.
transfer.json has every arm's accuracies on config.sets.test by seed, the paired t-test of synthetic
images against none, what the sets are, and the keys of the images that were drawn; few_shot.png
draws accuracy against shots. The same command makes only the arms that the folder `arms` lacks. The
processes of a job (--coordinator) share every batch of images among their devices.
"""

import sys
from typing import Any

import ml_collections
from etils import epath

from classifiers.clip import templates
from classifiers.clip.run import ClipRun
from classifiers.evaluation import zero_shot
from classifiers.evaluation.image_sets import EvaluationSet, check_specs, open_sets
from classifiers.extractors.clip import kept_class_weights, of_run
from classifiers.extractors.extractor import Extractor
from classifiers.extractors.features import features
from classifiers.tuning import head, report, tower
from classifiers.tuning.arms import REAL, SYNTHETIC, TEST, Arms, optimizer_of
from classifiers.tuning.head import Loss
from classifiers.tuning.tower import Tower
from input_pipeline.class_names import MIXED
from input_pipeline.source import Subset
from input_pipeline.sources.lacking import lacking_in_source
from input_pipeline.sources.subsets import per_class
from launch.cli import say
from launch.errors import InputError
from launch.files import write_json
from launch.runtime import app
from launch.runtime.devices import joining
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.limits import BATCH, MOST, check_numbers
from launch.runtime.locks import lock
from launch.runtime.optional_fields import Defaults, Mixed, below, unset
from launch.runtime.reports import image_grid
from launch.runtime.training.optimizers import make_optimizer

define_flags = joining.define_flags
METHODS = ("classifier_tuning",)


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config may leave out and the command line can set."""
    own = {"class_names": MIXED, "tuned": Mixed(tower.HEAD, (int, str)), "tower_rate": 1.0}
    fields = below("", config, own)
    for name, spec in config.sets.items():
        fields |= below(f"sets.{name}", spec, {"label_map": "", "prepare": unset(str)})
        fields |= lacking_in_source(f"sets.{name}.source", spec.get("source") or {})
    return fields


def main(args: app.Arguments) -> None:
    """Runs the command."""
    config = args.config
    check(config)
    if args.dry_run:
        app.describe(args)
        print("no parameters to count: those of config.clip stay frozen")
        return
    # 1. Open the run, the sets and the shots, so that all wrong input ends here.
    clip = ClipRun.open(config.clip, **config.checkpoint)
    sets = open_sets(config.sets)
    names = _names(config, sets)
    draws = {(n, s): _draw(config, sets, n, s) for n in config.shots if n for s in _seeds(config)}
    clip.tokenizer  # noqa: B018 - only checks that it is there and fits
    extractor = of_run(clip)
    learning = _tower(config, extractor)
    # 2. Features of all images before tuning, and the class weights to start from.
    on_first_process(lambda: lock(args.workdir))
    seen = {
        name: features(
            extractor,
            one.source,
            args.workdir / "features",
            batch_size=config.batch_size,
            name=name,
        )["features"]
        for name, one in sets.items()
    }
    sentences = templates.load(config.templates)
    start = kept_class_weights(clip, names, sentences, args.workdir / "features")
    # 3. Tune and score every arm and seed that the folder lacks.
    work = Arms(
        config,
        sets,
        seen,
        start,
        zero_shot.scale_and_bias(clip)[0],
        learning,
        args.workdir / "arms",
    )
    arms = work.results(draws)
    # 4. The keys of the drawn images by shots and seed make the result reproducible.
    drawn = {
        str(n): {str(s): [d.key(i) for i in range(len(d))] for (m, s), d in draws.items() if m == n}
        for n in config.shots
        if n
    }
    of_sets = {name: one.made_from for name, one in sets.items()}
    result = {"arms": report.result(arms), "sets": of_sets, "drawn": drawn}
    on_first_process(lambda: _write(args.workdir, result))


def _write(workdir: epath.Path, whole: dict[str, Any]) -> None:
    write_json(workdir / "transfer.json", whole)
    result = whole["arms"]
    print(report.table(result))
    image_grid.save_png(report.figure(result), workdir / "few_shot.png")
    say(f"see {workdir / 'few_shot.png'}", sys.stdout)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for a wrong field; needs no files."""
    if config.method not in METHODS:
        raise InputError(
            f"config.method must be {METHODS[0]}, got {config.method!r}; set it to that"
        )
    check_specs(config.sets)
    needed = {TEST} | ({REAL} if any(config.shots) else {SYNTHETIC})
    if missing := sorted(needed - set(config.sets)):
        raise InputError(f"config.sets must have {missing[0]!r}, got none; add it")
    shots = tuple(config.shots)
    if not shots or any(type(n) is not int or n < 0 for n in shots):
        raise InputError(f"config.shots must be whole numbers from 0, got {shots}; choose some")
    numbers = {"seeds": (1, MOST), "epochs": (1, MOST), "batch_size": BATCH}
    check_numbers(config, numbers)
    check_numbers(config.zero_shot, {"batch_size": BATCH}, "config.zero_shot")
    of_batches = {"real_batch": BATCH, "synthetic_batch": BATCH}
    check_numbers(config.few_shot, of_batches, "config.few_shot")
    templates.load(config.templates)
    head.check(config.strategy, Loss(**config.loss, scale=1.0))
    tower.check(_tuned(config), config.get("tower_rate", 1.0))
    for section in (config.zero_shot, config.few_shot):
        make_optimizer(optimizer_of(config, section.learning_rate), MOST)


def _tuned(config: ml_collections.ConfigDict) -> str | int:
    return config.get("tuned", tower.HEAD)


def _tower(config: ml_collections.ConfigDict, extractor: Extractor) -> Tower | None:
    """None where the tower stays frozen."""
    trained = tower.trained_parameters(extractor.variables["params"], _tuned(config))
    if not trained:
        return None
    return Tower(extractor, trained, config.get("tower_rate", 1.0), make_mesh({"data": -1}))


def _seeds(config: ml_collections.ConfigDict) -> range:
    return range(config.seeds)


def _names(config: ml_collections.ConfigDict, sets: dict[str, EvaluationSet]) -> tuple[str, ...]:
    """The class names in words; raises InputError unless all sets have the same, in one order."""
    expected = sets[TEST].label_map.class_names
    for name, one in sets.items():
        if one.label_map.class_names != expected:
            raise InputError(
                f"config.sets.{name} must have the test set's classes in the same order, got "
                f"{', '.join(one.label_map.class_names[:3])}, ...; use a set that has"
            )
    return zero_shot.names_in_words(sets[TEST], config.get("class_names", ""))


def _draw(
    config: ml_collections.ConfigDict, sets: dict[str, EvaluationSet], shots: int, seed: int
) -> Subset:
    """Real images of each class; more shots with the same seed contain those of fewer."""
    try:
        return per_class(sets[REAL].source, shots, seed)
    except InputError as error:
        raise InputError(f"config.shots: {str(error).replace('per_class', 'shots')}") from None


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
