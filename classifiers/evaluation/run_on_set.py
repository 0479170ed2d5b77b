"""Evaluates the seeds of a run on a set; results are kept, so that no work is done twice."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from classifiers import from_config
from classifiers.evaluation import attacks, scores
from classifiers.evaluation.attacks import Attack
from classifiers.evaluation.evaluated_runs import EvaluatedRun
from classifiers.evaluation.image_sets import EvaluationSet
from input_pipeline.augment.policy import Transform
from input_pipeline.batches.passes import over_batches
from input_pipeline.source import Subset
from launch.errors import InputError
from launch.fields import Fields
from launch.files import read_sealed, write_sealed
from launch.runtime.config import plain
from launch.runtime.devices.distributed import decide_on_first_process, on_first_process
from launch.runtime.types import Array, Variables

# Version of kept results: raise it when a number changes its meaning.
_FORMAT = 2


def check_attacks(specs: Fields, sets: Fields) -> dict[str, Attack]:
    """The attacks of `config.attacks` by name.

    Beside the fields of `attacks.make` each may have `sets`, the names of those it attacks (none
    means all), and `num_images` of each (0 means all).

    Raises:
        InputError: a field is wrong, or there is no such set.
    """
    by_name = {}
    for name, spec in plain(specs).items():
        where = f"config.attacks.{name}"
        chosen, count = spec.pop("sets", ()), spec.pop("num_images", 0)
        if unknown := [set_name for set_name in chosen if set_name not in sets]:
            raise InputError(f"{where}.sets must be some of {', '.join(sets)}, got {unknown[0]!r}")
        if not isinstance(count, int) or count < 0:
            raise InputError(f"{where}.num_images must be a number, or 0 for all, got {count!r}")
        by_name[name] = attacks.make(where, spec)
    return by_name


class RunOnSet:
    """A run's network, compiled for a set and the attacks on it."""

    def __init__(
        self,
        run: EvaluatedRun,
        evaluation_set: EvaluationSet,
        config: Fields,
        mesh: Mesh,
        tell: Callable[[int], Any],
    ):
        """Makes the network's functions; they compile when they are first used.

        `config` has `batch_size`, `calibration_bins` and `attacks`; `tell` is called with the
        number of images done since its last call.

        Raises:
            InputError: images cannot be brought to what the network takes.
        """
        # 1. The network in its own precision, for accuracy.
        self._run, self._set, self._config, self._mesh = run, evaluation_set, config, mesh
        self._tell = tell
        self._transform = from_config.make_transform(run.config)
        model = from_config.make_model(run.config.model, run.num_classes)
        shape = from_config.image_shape(run.config, evaluation_set.source)
        init = lambda: from_config.init_model(model, jax.random.key(0), shape)  # noqa: E731
        self._abstract = jax.eval_shape(init)
        self._score = scores.make_score(
            model, evaluation_set.source, evaluation_set.label_map, *self._batches(), tell
        )
        # 2. The network in float32, for attacks: in bfloat16 a step of less than half a grey level
        # would be rounded away.
        fields = ml_collections.ConfigDict(run.config.model.to_dict() | {"dtype": "float32"})
        precise = from_config.make_model(fields, run.num_classes)
        judge = scores.make_judge(precise, evaluation_set.label_map)
        # 3. The attacks on this set.
        specs = plain(config["attacks"])
        self._specs = {
            name: spec
            for name, spec in specs.items()
            if evaluation_set.name in _attacked_sets(spec, evaluation_set)
        }
        made = check_attacks(self._specs, {evaluation_set.name: None} | dict(config["sets"]))
        self._attacks = {name: attacks.make_attack(a, judge) for name, a in made.items()}

    @property
    def num_images(self) -> int:
        """Images that a seed looks at, counting each attack."""
        return len(self._set.source) + sum(
            len(self._attacked_positions(name)) for name in self._attacks
        )

    def read_or_make(self, path: epath.Path, seed: int) -> tuple[dict[str, Any], bool]:
        """A seed's results, and whether `path` had them; otherwise they are made and kept there.

        They are those of `scores.summarise`, with `attacks`, by name `accuracy`, `clean_accuracy`
        of the same images and `num_images`, and `checkpoint`, the checksum of the weights.

        Raises:
            InputError: the checkpoint is damaged or of another model, or its outputs are not
                finite.
        """
        made_from = self._made_from(seed)
        # One process looks and all follow, for making them takes every process.
        if (kept := decide_on_first_process(lambda: _kept(path, made_from))) is not None:
            return kept, True
        results = {**self._make(seed), "checkpoint": made_from["checkpoint"]}

        def keep() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(path, {"made_from": made_from, "results": results})

        on_first_process(keep)
        return results, False

    def _made_from(self, seed: int) -> dict[str, Any]:
        # `augment` decides the size where `evaluation` does not.
        fields = ("model", "evaluation", "augment")
        network = {name: self._run.config.get(name) for name in fields}
        origin = {
            "format": _FORMAT,
            "checkpoint": self._run.seeds[seed].digest(**self._run.checkpoint),
            "network": network,
            "set": self._set.made_from,
            "attacks": self._specs,
            "calibration_bins": self._config["calibration_bins"],
        }
        return plain(origin)

    def _make(self, seed: int) -> dict[str, Any]:
        run = self._run.seeds[seed]
        # Every device has all weights, and its share of images.
        whole = NamedSharding(self._mesh, P())
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            self._abstract,
        )
        variables = run.variables(abstract, **self._run.checkpoint)
        image_scores, labels = self._score(variables), self._set.source.labels
        if not np.isfinite(image_scores["loss"]).all():
            raise InputError(
                f"{run.folder}: its outputs on {self._set.name} are NaN or infinite; leave "
                "this run out, or train it again"
            )
        num_classes = len(self._set.label_map.class_names)
        results = scores.summarise(
            image_scores, labels, num_classes, self._config["calibration_bins"]
        )
        # Attacks report the clean accuracy of just the images that they attack.
        correct = image_scores["predicted"] == labels
        return {
            **results,
            "attacks": {name: self._attacked(name, variables, correct) for name in self._attacks},
        }

    def _attacked(self, name: str, variables: Variables, correct: np.ndarray) -> dict[str, Any]:
        positions, attack = self._attacked_positions(name), self._attacks[name]
        whole = len(positions) == len(self._set.source)
        source = self._set.source if whole else Subset(self._set.source, positions)

        def step(images: Array, labels: Array, at: Array) -> dict[str, Array]:
            return {"correct": attack(variables, images, labels, at).correct}

        still_correct = over_batches(step, source, *self._batches(), self._tell)["correct"]
        return {
            "accuracy": float(still_correct.mean()),
            "clean_accuracy": float(correct[positions].mean()),
            "num_images": len(positions),
        }

    def _batches(self) -> tuple[int, Transform | None, Mesh]:
        return self._config["batch_size"], self._transform, self._mesh

    def _attacked_positions(self, name: str) -> np.ndarray:
        """Positions of the attacked images, evenly spread, as sets are sorted by class."""
        total = len(self._set.source)
        count = min(self._specs[name].get("num_images", 0) or total, total)
        return np.arange(count) * total // count  # floor(k total / count)


def _kept(path: epath.Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The results at `path`, if they are whole and made from the same; else None."""
    try:
        kept = read_sealed(path)
    except InputError:
        return None
    return kept["results"] if kept.get("made_from") == made_from else None


def _attacked_sets(spec: Fields, evaluation_set: EvaluationSet) -> list[str]:
    return spec.get("sets") or [evaluation_set.name]
