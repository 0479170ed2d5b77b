"""From the evaluations of a study's runs to its numbers. Accuracies are in [0, 1].

Differences are against real images only. P-values are of two-sided paired t-tests: over the seeds
of a model (seed n of both starts with the same weights), and over models as in Azizi et al. 2023,
section 5.3. Where there is no test (one pair, or all differences the same) they are None.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from scipy import stats

from classifiers.evaluation.statistics import Accuracies, compare
from classifiers.studies.inventory import Inventory
from classifiers.studies.plan import REAL, PlannedRun, arms_of, evaluation_path
from launch.errors import InputError
from launch.files import read_fields

# By model and name of the arm, see `read_arms`.
Arms = Mapping[str, Mapping[str, dict[str, Any]]]
# Rounding is far below the difference that one image makes.
_ROUNDING = 1e-9


def collect(
    config: ml_collections.ConfigDict, runs: Sequence[PlannedRun], inventory: Inventory
) -> dict[str, Any]:
    """Everything that a study reports, as JSON takes it.

    `evaluation` (set, number of images, class names), `sizes` of the models, `arms` (see
    `read_arms`), and for each study of `config.studies` its numbers, from the function of that
    name.

    Raises:
        InputError: the evaluations are not of the same images.
    """
    # 1. Read the evaluations, which must be comparable.
    kinds: dict[str, Any] = dict(num_images=int, class_names=list, arms=dict)
    evaluations = [read_fields(evaluation_path(config, run), **kinds) for run in runs]
    evaluation = {key: evaluations[0][key] for key in ("num_images", "class_names")}
    for run, other in zip(runs, evaluations, strict=True):
        if any(other[key] != value for key, value in evaluation.items()):
            raise InputError(
                f"{evaluation_path(config, run)} was made on other images than that of "
                f"{runs[0].folder}; remove it and run the same command again"
            )
    # 2. Statistics of each arm, then of each study.
    arms = read_arms(runs, evaluations, inventory)
    result: dict[str, Any] = {
        "evaluation": {"set": config.evaluation.set, **evaluation},
        "sizes": {
            label: {"input": s, "parameters": n} for label, (s, n) in inventory.model_sizes.items()
        },
        "arms": arms,
    }
    for study in config.studies:
        names = [arm.name for arm in arms_of(config, study)]
        result[study] = _STUDIES[study]({m: arms[m] for m in config.models_of[study]}, names)
    return result


def read_arms(
    runs: Sequence[PlannedRun], evaluations: Sequence[Mapping[str, Any]], inventory: Inventory
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measurements by model and by name of the arm.

    Each has `copies`, `num_real` and `num_synthetic` images, `accuracies` of the seeds, their
    `mean` and `std`, `per_class`, and `difference` and `p_value` against real images only; the same
    with `top5_` before it where top-5 was measured.
    """
    arms: dict[str, dict[str, dict[str, Any]]] = {}
    for run, evaluation in zip(runs, evaluations, strict=True):
        arm = dict(evaluation["arms"][run.arm.name])
        arm["num_real"], arm["num_synthetic"] = inventory.image_counts[run.model, run.arm.name]
        arm["copies"] = run.arm.copies
        arms.setdefault(run.model, {})[run.arm.name] = arm
    for by_name in arms.values():
        real = by_name[REAL.name]
        for arm in by_name.values():
            arm.update(against(arm["accuracies"], real["accuracies"]))
            if "top5" in arm and "top5" in real:
                top5 = against(arm["top5"], real["top5"])
                arm.update({f"top5_{key}": value for key, value in top5.items()})
    return arms


def against(values: Accuracies, baseline: Accuracies) -> dict[str, Any]:
    """`mean`, `std`, `difference` to the baseline's mean and `p_value`, over pairs."""
    difference = float(np.mean(values) - np.mean(baseline))
    return {**compare(values, baseline), "difference": difference}


def cas(arms: Arms, names: Sequence[str]) -> list[dict[str, Any]]:
    """Classification accuracy scores (Ravuri & Vinyals 2019): rows by model and arm, real first."""
    keep = ("num_real", "num_synthetic", *_SCORES)
    return [
        {"model": model, "arm": name, **{key: by_name[name].get(key) for key in keep}}
        for model, by_name in arms.items()
        for name in names
    ]


def scaling(arms: Arms, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy against the number of synthetic images added: Azizi et al. 2023, figure 6.

    By model: `points`, one per number of images, and `best`, the name of the arm with the highest
    mean.
    """
    keep = ("copies", "num_real", "num_synthetic", *_SCORES)
    return {
        model: {
            "points": [{"arm": n, **{key: by_name[n].get(key) for key in keep}} for n in names],
            "best": max(names, key=lambda name: by_name[name]["mean"]),
        }
        for model, by_name in arms.items()
    }


def models(arms: Arms, names: Sequence[str]) -> dict[str, Any]:
    """Real, synthetic and both for several models: Azizi et al. 2023, table 3.

    `names` are those of the three arms in this order. `rows` has one per model; `both` and
    `synthetic` compare each with real images, over models.
    """
    real, synthetic, both = names
    keys = {"real": real, "synthetic": synthetic, "both": both}
    rows = []
    for model, by_name in arms.items():
        row: dict[str, Any] = {"model": model, "seeds": len(by_name[real]["accuracies"])}
        for key, name in keys.items():
            row |= {key: by_name[name]["mean"], f"{key}_std": by_name[name]["std"]}
        row |= {key: by_name[both][key] for key in ("difference", "p_value")}
        rows.append(row)
    means = {key: np.array([row[key] for row in rows]) for key in keys}
    return {
        "arms": keys,
        "rows": rows,
        **{key: over_models(means[key], means["real"]) for key in ("both", "synthetic")},
    }


def over_models(values: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    """A paired comparison of mean accuracies over models."""
    differences = values - baseline
    summary = compare(values, baseline)
    return {
        "num_models": len(differences),
        "num_better": int((differences > _ROUNDING).sum()),
        "mean_difference": float(differences.mean()),
        "std_difference": float(differences.std(ddof=1)) if len(differences) > 1 else 0.0,
        "p_value": summary["p_value"],
    }


def per_class(arms: Arms, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy by class, synthetic images against real ones: Azizi et al. 2023, figure 5.

    `names` are those of the two arms, real first. By model: `classes`, the labels with images;
    accuracies `real` and `synthetic`; counts of classes where synthetic images are `better`,
    `worse` and `equal`; and Pearson's `correlation`, None where either is the same for all classes.
    """
    comparisons = {}
    for model, by_name in arms.items():
        pairs = list(zip(*(by_name[name]["per_class"] for name in names), strict=True))
        # None: no images of the class.
        classes = [label for label, pair in enumerate(pairs) if None not in pair]
        real, synthetic = np.array([pairs[label] for label in classes], float).T
        better, worse = (synthetic > real + _ROUNDING), (synthetic < real - _ROUNDING)
        # Else Pearson's r is 0 / 0.
        varied = len(real) > 1 and np.ptp(real) > _ROUNDING and np.ptp(synthetic) > _ROUNDING
        comparisons[model] = {
            "classes": classes,
            "real": real.tolist(),
            "synthetic": synthetic.tolist(),
            "better": int(better.sum()),
            "worse": int(worse.sum()),
            "equal": int((~better & ~worse).sum()),
            "share_better": float(better.mean()),
            "correlation": float(stats.pearsonr(real, synthetic)[0]) if varied else None,
        }
    return comparisons


def filters(arms: Arms, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the synthetic images that a filter keeps are worth, against as many drawn at random.

    `names` are real, real with all synthetic images, then kept and random of each filter. A row per
    model and filter has mean and `_std` of each, and `difference` and `p_value` of kept against
    random, over seeds.
    """
    real, everything, *parts = names
    rows = []
    for model, by_name in arms.items():
        for kept, random in zip(parts[::2], parts[1::2], strict=True):
            keys = {"real": real, "all": everything, "kept": kept, "random": random}
            row: dict[str, Any] = {
                "model": model,
                "filter": kept.removeprefix(f"{everything}_").removesuffix("_kept"),
                "num_kept": by_name[kept]["num_synthetic"],
                "num_synthetic": by_name[everything]["num_synthetic"],
                "seeds": len(by_name[kept]["accuracies"]),
            }
            for key, name in keys.items():
                row |= {key: by_name[name]["mean"], f"{key}_std": by_name[name]["std"]}
            test = against(by_name[kept]["accuracies"], by_name[random]["accuracies"])
            rows.append(row | {key: test[key] for key in ("difference", "p_value")})
    return rows


_SCORES = ("mean", "std", "difference", "p_value",
           "top5_mean", "top5_std", "top5_difference", "top5_p_value")  # fmt: skip
_STUDIES = {"cas": cas, "scaling": scaling, "models": models, "per_class": per_class,
            "filters": filters}  # fmt: skip
