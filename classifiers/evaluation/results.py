"""What all arms reach on each set: for JSON, as tables and as a figure."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from classifiers.evaluation import report, shot_groups
from classifiers.evaluation.image_sets import EvaluationSet
from classifiers.evaluation.statistics import compare
from launch.cli import say
from launch.files import write_json
from launch.runtime.reports import image_grid

# Of one seed: the output of `scores.summarise`, with `checkpoint` and `attacks`.
SeedResults = Mapping[str, Any]


def summary(
    evaluation_set: EvaluationSet,
    seeds: Mapping[str, Sequence[SeedResults]],
    baseline: str,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All arms of a set, from their seeds' results, each compared with the arm `baseline`.

    `groups` names the shot group of each class, if accuracy by group is wanted.
    """
    arms = {name: _arm(seed_results) for name, seed_results in seeds.items()}
    reference = arms.get(baseline, {}).get("accuracies")
    for arm in arms.values():
        arm.update(compare(arm["accuracies"], reference))
        if groups is not None:
            arm.update(shot_groups.accuracies(arm["per_class"], groups))
    return {
        "name": evaluation_set.name,
        "num_images": len(evaluation_set.source),
        "class_names": list(evaluation_set.label_map.class_names),
        "label_map": evaluation_set.made_from["label_map"],
        "baseline": baseline,
        "arms": arms,
    }


def write(workdir: epath.Path, results: Mapping[str, dict[str, Any]], baseline: str) -> None:
    """Writes evaluation_NAME.json of every set and evaluation.png, and prints the tables."""
    for name, result in results.items():
        write_json(workdir / f"evaluation_{name}.json", result)
        print(f"\n{report.table(result)}")
    if len(results) > 1:
        print(f"\n{report.overview(results)}")
    if baseline and any(baseline not in result["arms"] for result in results.values()):
        print(f"config.baseline={baseline} is not the name of an arm, so there are no p-values")
    image_grid.save_png(report.picture(results), workdir / "evaluation.png")
    say(f"see {workdir / 'evaluation.png'}", sys.stdout)


def _arm(seeds: Sequence[SeedResults]) -> dict[str, Any]:
    # Results are a list over seeds, under a name in the plural.
    names = {"accuracies": "accuracy", "top5": "top5", "loss": "loss"}
    names["calibration_error"] = "calibration_error"
    # Classes without images have None in every seed.
    per_class = [
        None if column[0] is None else float(np.mean(column))
        for column in zip(*(seed["per_class"] for seed in seeds), strict=True)
    ]
    bins = seeds[0]["calibration"]
    attacks = {}
    for name, first in seeds[0]["attacks"].items():
        attack_results = [seed["attacks"][name] for seed in seeds]
        accuracies = [result["accuracy"] for result in attack_results]
        clean = [result["clean_accuracy"] for result in attack_results]
        means = {key: compare(accuracies, None)[key] for key in ("mean", "std")}
        attacks[name] = {
            "accuracies": accuracies,
            "clean_accuracies": clean,
            "num_images": first["num_images"],
            **means,
        }
    return {
        **{plural: [seed[name] for seed in seeds] for plural, name in names.items()},
        "per_class": per_class,
        "calibration": {
            # Counts add up, errors would not.
            key: np.sum([seed["calibration"][key] for seed in seeds], axis=0).tolist()
            for key in bins
        },
        "attacks": attacks,
        "checkpoints": [seed["checkpoint"] for seed in seeds],
    }
