"""The arms of few-shot tuning: what each seed reaches, kept as soon as it is known."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Float

from classifiers.evaluation import scores, zero_shot
from classifiers.evaluation.image_sets import EvaluationSet
from classifiers.extractors.features import feature_batches
from classifiers.tuning import head, tower
from classifiers.tuning.head import Loss, Part
from classifiers.tuning.tower import ImagePart, Tower
from input_pipeline.source import Source, Subset
from launch.errors import InputError
from launch.files import read_sealed, write_sealed
from launch.runtime.config import plain
from launch.runtime.devices.distributed import decide_on_first_process, on_first_process

REAL, SYNTHETIC, TEST = "real", "synthetic", "test"
# Of one seed: accuracy, top5, loss, per_class.
Reached = dict[str, Any]
# Version of kept results: raise it when their numbers change meaning.
_FORMAT = 1
# Fields of the config that decide the numbers; kept results of others are made again.
_DECIDING = (
    *("strategy", "loss", "epochs", "optimizer", "zero_shot", "few_shot", "calibration_bins"),
    *("tuned", "tower_rate"),
)


@dataclasses.dataclass(frozen=True)
class Arms:
    """All arms of a config on one tower."""

    config: ml_collections.ConfigDict
    sets: dict[str, EvaluationSet]  # 'test', and 'real' or 'synthetic' or both
    seen: dict[str, np.ndarray]  # features before tuning, by set
    start: Float[np.ndarray, "classes d"]  # class weights before tuning
    scale: float  # of the logits
    tower: Tower | None  # None where the tower stays frozen
    folder: epath.Path  # of kept results; all processes see it

    def results(self, draws: dict[tuple[int, int], Subset]) -> dict[str, list[Reached]]:
        """Results by arm, one per seed; arms are called KIND@SHOTS.

        `draws` has the real images by shots and seed.
        """
        arms: dict[str, list[Reached]] = {}
        few, none = self.config.few_shot, self.config.zero_shot
        for shots in self.config.shots:
            # Without real images: before tuning, and tuned on synthetic ones alone.
            if not shots:
                before = self._score(self.start, self.seen[TEST])
                arms["zero_shot@0"] = [before] * self.config.seeds  # no seed decides anything
                if SYNTHETIC in self.sets:
                    alone = lambda seed: [self._synthetic(none.batch_size)]  # noqa: E731
                    arms["synthetic@0"] = self._seeds("synthetic@0", alone, none.learning_rate)
                continue

            # Defaults bind the loop's values now: closures would see those of the last round.
            def real(seed: int, shots: int = shots) -> list[Part]:
                rows = draws[shots, seed].indices
                return [self._part(REAL, rows, few.real_batch, hard=True)]

            def both(seed: int, real: Callable[[int], list[Part]] = real) -> list[Part]:
                return [*real(seed), self._synthetic(few.synthetic_batch)]

            # With real images: alone, and with the synthetic ones.
            arms[f"real@{shots}"] = self._seeds(f"real@{shots}", real, few.learning_rate)
            if SYNTHETIC in self.sets:
                name = f"real+synthetic@{shots}"
                arms[name] = self._seeds(name, both, few.learning_rate)
        return arms

    def _synthetic(self, batch_size: int) -> Part:
        return self._part(SYNTHETIC, np.arange(len(self.seen[SYNTHETIC])), batch_size, hard=False)

    def _part(self, name: str, rows: np.ndarray, batch_size: int, hard: bool) -> Part:
        """Some images of a set, with the labels alone as their loss (`hard`) or `config.loss`."""
        source = self.sets[name].source
        amounts = dict(hard=1.0, soft=0.0, temperature=1.0) if hard else self.config.loss
        loss = Loss(**amounts, scale=self.scale)
        part = Part.make(self.seen[name][rows], source.labels[rows], batch_size, loss)
        if self.tower is None:
            return part
        return ImagePart(**vars(part), images=Subset(source, rows))

    def _seeds(
        self, name: str, parts: Callable[[int], list[Part]], learning_rate: float
    ) -> list[Reached]:
        """Results of all seeds of an arm: read where kept, else tuned and kept."""
        reached = []
        for seed in range(self.config.seeds):
            path = self.folder / f"{name}-{seed}.json"
            # One process looks, for all must agree: those that tune wait for each other.
            found = decide_on_first_process(functools.partial(self._read, path))
            if found is None:
                found = self._tune(parts(seed), learning_rate, seed)
                kept = {"made_from": self._origin, "reached": found}
                on_first_process(functools.partial(self._keep, path, kept))
            reached.append(found)
        return reached

    @functools.cached_property
    def _origin(self) -> dict[str, Any]:
        """Everything that decides the results of all arms, for JSON."""
        of_sets = {
            name: _digest(self.seen[name], one.source.labels) for name, one in self.sets.items()
        }
        fields = {name: self.config[name] for name in _DECIDING if name in self.config}
        return {
            "format": _FORMAT,
            "sets": of_sets,
            "start": _digest(self.start, np.float32(self.scale)),
            "config": plain(ml_collections.ConfigDict(fields)),
        }

    def _read(self, path: epath.Path) -> Reached | None:
        try:
            content = read_sealed(path)
        except InputError:
            return None
        return content["reached"] if content.get("made_from") == self._origin else None

    def _keep(self, path: epath.Path, content: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, content)

    def _tune(self, parts: list[Any], learning_rate: float, seed: int) -> Reached:
        config = self.config
        optimizer = optimizer_of(config, learning_rate)
        options = config.strategy, optimizer, config.epochs, seed
        if self.tower is None:
            return self._score(head.tune(self.start, parts, *options), self.seen[TEST])
        # The tower has changed, so the test images' features are computed again.
        weights, extractor = tower.tune(self.start, parts, *options, self.tower)
        test: Source = self.sets[TEST].source
        batches = feature_batches(extractor, test, batch_size=config.batch_size)
        return self._score(weights, np.concatenate([batch["features"] for batch in batches]))

    def _score(self, weights: np.ndarray, features: np.ndarray) -> Reached:
        test = self.sets[TEST]
        labels, classes = test.source.labels, len(test.label_map.class_names)
        said = zero_shot.scores_of_features(features, labels, weights, test.label_map, self.scale)
        numbers = scores.summarise(said, labels, classes, self.config.calibration_bins)
        return {name: numbers[name] for name in ("accuracy", "top5", "loss", "per_class")}


def optimizer_of(
    config: ml_collections.ConfigDict, learning_rate: float
) -> ml_collections.ConfigDict:
    """`config.optimizer` with another learning rate."""
    return ml_collections.ConfigDict({**config.optimizer, "learning_rate": learning_rate})


def _digest(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
