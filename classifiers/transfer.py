r"""Tunes the classes' weights of CLIP on few real images and on synthetic ones (He et al. 2023).

python -m classifiers.transfer --config=configs/clip/few_shot.py:method=classifier_tuning \
    --workdir=runs/clip/few_shot

The image tower of config.clip stays as it is, batch norms in evaluation mode; its features are
computed once and kept in the folder `features`. The weights of the classes begin as those of
classifiers.zero_shot, and are tuned on so many real images of each class as config.shots says,
drawn by seed, alone ('real') and beside the synthetic ones ('real+synthetic'); 0 shots are the
weights before tuning ('zero_shot'), and after tuning on synthetic images alone ('synthetic'). Real
images count by their labels; the loss of synthetic ones is config.loss: with the labels (hard),
with what the weights before tuning say of the image (soft), or a part of both. config.strategy
trains on both kinds in every step ('mix', the sum of their losses), or on one after the other.
transfer.json has every arm's accuracies on config.sets.test by seed, the paired t-test of synthetic
images against none, and the keys of the images that were drawn; few_shot.png draws accuracy against
shots. The processes of a job (--coordinator) share every batch of images among their devices.
"""

import sys
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from classifiers.clip import templates
from classifiers.clip.run import ClipRun
from classifiers.evaluation import scores, zero_shot
from classifiers.evaluation.image_sets import EvaluationSet, check_specs, open_sets
from classifiers.extractors.clip import kept_class_weights, of_run
from classifiers.extractors.features import features
from classifiers.tuning import head, report
from classifiers.tuning.head import Loss, Part
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
from launch.runtime.limits import BATCH, MOST, check_numbers
from launch.runtime.locks import lock
from launch.runtime.optional_fields import Defaults, below, unset
from launch.runtime.reports import image_grid
from launch.runtime.training.optimizers import make_optimizer

define_flags = joining.define_flags
METHODS = ("classifier_tuning",)
REAL, SYNTHETIC, TEST = "real", "synthetic", "test"


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config lacks and the command line can set."""
    fields = below("", config, {"class_names": MIXED})
    for name, spec in config.sets.items():
        fields |= below(f"sets.{name}", spec, {"label_map": "", "prepare": unset(str)})
        fields |= lacking_in_source(f"sets.{name}.source", spec.get("source") or {})
    return fields


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config = args.config
    check(config)
    if args.dry_run:
        app.describe(args)
        print("no parameters to count: those of config.clip stay as they are")
        return
    clip = ClipRun.open(config.clip, **config.checkpoint)
    sets = open_sets(config.sets)
    names = _names(config, sets)
    draws = {(n, s): _draw(config, sets, n, s) for n in config.shots if n for s in _seeds(config)}
    clip.tokenizer  # noqa: B018 - looks whether it is there and fits
    on_first_process(lambda: lock(args.workdir))
    seen = {
        name: features(
            of_run(clip),
            one.source,
            args.workdir / "features",
            batch_size=config.batch_size,
            name=name,
        )["features"]
        for name, one in sets.items()
    }
    sentences = templates.load(config.templates)
    start = kept_class_weights(clip, names, sentences, args.workdir / "features")
    work = _Work(config, sets, seen, start, zero_shot.scale_and_bias(clip)[0])
    arms = work.arms(draws)
    drawn = {
        str(n): {str(s): [d.key(i) for i in range(len(d))] for (m, s), d in draws.items() if m == n}
        for n in config.shots
        if n
    }
    on_first_process(lambda: _write(args.workdir, report.result(arms), drawn))


def _write(
    workdir: epath.Path, result: dict[str, dict[str, Any]], drawn: dict[str, dict[str, list[str]]]
) -> None:
    """Writes what all arms have reached, and prints it."""
    write_json(workdir / "transfer.json", {"arms": result, "drawn": drawn})
    print(report.table(result))
    image_grid.save_png(report.figure(result), workdir / "few_shot.png")
    say(f"see {workdir / 'few_shot.png'}", sys.stdout)


def check(config: ml_collections.ConfigDict) -> None:
    """Looks at all of a config that needs no files.

    Raises:
        InputError: a field is wrong.
    """
    if config.method not in METHODS:
        raise InputError(f"config.method must be {METHODS[0]}, got {config.method!r}; choose it")
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
    for section in (config.zero_shot, config.few_shot):
        make_optimizer(_optimizer(config, section.learning_rate), MOST)


def _seeds(config: ml_collections.ConfigDict) -> range:
    return range(config.seeds)


def _optimizer(
    config: ml_collections.ConfigDict, learning_rate: float
) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({**config.optimizer, "learning_rate": learning_rate})


def _names(config: ml_collections.ConfigDict, sets: dict[str, EvaluationSet]) -> tuple[str, ...]:
    """The classes in words, which all sets have in one order."""
    expected = sets[TEST].label_map.class_names
    for name, one in sets.items():
        if one.label_map.class_names != expected:
            raise InputError(
                f"config.sets.{name} must have the classes of the test set in its order, got "
                f"{', '.join(one.label_map.class_names[:3])}, ...; name one that has"
            )
    return zero_shot.names_in_words(sets[TEST], config.get("class_names", ""))


def _draw(
    config: ml_collections.ConfigDict, sets: dict[str, EvaluationSet], shots: int, seed: int
) -> Subset:
    """So many real images of each class; more shots with the same seed hold those of fewer."""
    try:
        return per_class(sets[REAL].source, shots, seed)
    except InputError as error:
        raise InputError(f"config.shots: {str(error).replace('per_class', 'shots')}") from None


class _Work:
    """All arms on one tower's features."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        sets: dict[str, EvaluationSet],
        seen: dict[str, np.ndarray],
        start: np.ndarray,
        scale: float,
    ):
        self._config, self._sets, self._seen = config, sets, seen
        self._start, self._scale = start, scale
        self._soft = Loss(**config.loss, scale=scale)
        self._hard = Loss(hard=1.0, soft=0.0, temperature=1.0, scale=scale)

    def arms(self, draws: dict[tuple[int, int], Subset]) -> dict[str, list[dict[str, Any]]]:
        """By name what each seed has reached; names end with the number of shots."""
        arms: dict[str, list[dict[str, Any]]] = {}
        few, none = self._config.few_shot, self._config.zero_shot
        for shots in self._config.shots:
            if not shots:
                arms["zero_shot@0"] = [self._score(self._start)] * self._config.seeds
                if SYNTHETIC in self._sets:
                    parts = [self._synthetic(none.batch_size)]
                    arms["synthetic@0"] = self._tuned(lambda seed, p=parts: p, none.learning_rate)
                continue

            def real(seed: int, shots: int = shots) -> list[Part]:
                rows = draws[shots, seed].indices
                labels = self._sets[REAL].source.labels[rows]
                return [Part.make(self._seen[REAL][rows], labels, few.real_batch, self._hard)]

            arms[f"real@{shots}"] = self._tuned(real, few.learning_rate)
            if SYNTHETIC in self._sets:
                other = self._synthetic(few.synthetic_batch)
                both = lambda seed, real=real, other=other: [*real(seed), other]  # noqa: E731
                arms[f"real+synthetic@{shots}"] = self._tuned(both, few.learning_rate)
        return arms

    def _synthetic(self, batch_size: int) -> Part:
        labels = self._sets[SYNTHETIC].source.labels
        return Part.make(self._seen[SYNTHETIC], labels, batch_size, self._soft)

    def _tuned(self, parts: Any, learning_rate: float) -> list[dict[str, Any]]:
        config = self._config
        optimizer = _optimizer(config, learning_rate)
        return [
            self._score(
                head.tune(self._start, parts(seed), config.strategy, optimizer, config.epochs, seed)
            )
            for seed in _seeds(config)
        ]

    def _score(self, weights: np.ndarray) -> dict[str, Any]:
        test = self._sets[TEST]
        labels, classes = test.source.labels, len(test.label_map.class_names)
        said = zero_shot.scores_of_features(
            self._seen[TEST], labels, weights, test.label_map, self._scale
        )
        numbers = scores.summarise(said, labels, classes, self._config.calibration_bins)
        return {name: numbers[name] for name in ("accuracy", "top5", "loss", "per_class")}


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
