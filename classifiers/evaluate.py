"""Evaluates every classifier below a folder on one set of images, and compares them.

python -m classifiers.evaluate --config=configs/digits/evaluate.py --workdir=runs/digits/classifiers

Each run of classifiers.train in the folder is one arm; its seeds are its repetitions. Results go to
evaluation_NAME.json in the folder, and to a table.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Int
from scipy import stats
from tqdm import tqdm

from classifiers import recipes
from classifiers.models.presets import Classifier
from input_pipeline import loader, sources
from input_pipeline.augment.policy import Transform
from input_pipeline.files import InputError, write_json
from launch.runtime import app, checkpoint
from launch.runtime.images import to_float
from launch.runtime.workdir import load_run_config


def make_predict(
    model: Classifier,
    source: sources.Source,
    batch_size: int,
    transform: Transform | None = None,
) -> Callable[[dict[str, Any]], Int[np.ndarray, " n"]]:
    """A function from variables to the predicted class of every image of `source`, in order.

    Args:
        model: the network.
        source: the images.
        batch_size: images at a time.
        transform: what happens to each of them before.
    """

    @jax.jit
    def predict(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        logits = model.apply(variables, to_float(images))
        return jnp.argmax(logits, axis=-1)

    def predict_all(variables: dict[str, Any]) -> np.ndarray:
        batches = loader.eval_batches(source, batch_size, transform)
        parts = [np.asarray(predict(variables, b["image"]))[b["mask"]] for b in batches]
        return np.concatenate(parts)

    return predict_all


def find_runs(folder: epath.Path) -> list[epath.Path]:
    """Run directories of classifiers.train in `folder`, or `folder` itself.

    Raises:
        InputError: there is none.
    """
    if (folder / "config.json").exists():
        return [folder]
    runs = sorted(path.parent for path in folder.glob("*/config.json")) if folder.exists() else []
    if not runs:
        raise InputError(
            f"{folder} holds no run of classifiers.train: train one, or name its folder"
        )
    return runs


def evaluate_run(run: epath.Path, source: sources.Source, batch_size: int) -> dict[str, Any]:
    """Accuracy and accuracy by class of each seed of a run.

    Raises:
        InputError: a seed is missing, unfinished or damaged.
    """
    config = load_run_config(run)
    model, abstract = _model(run, source)
    predict = make_predict(model, source, batch_size, recipes.make_transform(config))
    accuracies, per_class = [], []
    for seed in range(config.seeds):
        folder = run / f"seed_{seed}"
        variables = checkpoint.load_inference(folder, abstract, config.total_steps)
        correct = predict(variables) == source.labels
        accuracies.append(float(correct.mean()))
        per_class.append(
            [float(correct[source.labels == label].mean()) for label in np.unique(source.labels)]
        )
    return {"accuracies": accuracies, "per_class": np.mean(per_class, axis=0).tolist()}


def _model(run: epath.Path, source: sources.Source) -> tuple[Classifier, dict[str, Any]]:
    """A run's model, and the shapes of its variables."""
    config = load_run_config(run)
    if "model" not in config or "seeds" not in config:
        raise InputError(
            f"{run} is no run of classifiers.train: name a folder that holds only such"
        )
    model = recipes.make_model(config.model, len(source.class_names))
    shape = recipes.image_shape(config, source)
    return model, jax.eval_shape(lambda: recipes.init_model(model, jax.random.key(0), shape))


def compare(
    accuracies: Float[np.ndarray, " seeds"], baseline: Float[np.ndarray, " seeds"] | None
) -> dict[str, Any]:
    """Mean, standard deviation over seeds, and the paired t-test's p-value against a baseline.

    The p-value is None without a baseline, for the baseline itself, and where all differences are
    the same (which has no t-test).
    """
    std = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
    summary = {"mean": float(np.mean(accuracies)), "std": std}
    p_value = None
    if baseline is not None and len(baseline) == len(accuracies):
        differences = np.asarray(accuracies) - np.asarray(baseline)
        # One image more or less is a larger difference than rounding.
        if np.ptp(differences) > 1e-9:
            p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return {**summary, "p_value": p_value}


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config = args.config
    source = sources.load(config.source)
    if args.dry_run:
        runs = find_runs(args.workdir) if args.workdir else []
        app.describe(config, **{run.name: _model(run, source)[1]["params"] for run in runs})
        if not runs:
            print("no parameters to count: --workdir names no folder of runs")
        return
    runs = find_runs(args.workdir)
    progress = tqdm(runs, desc=f"evaluate on {config.name}", unit="run")
    arms = {run.name: evaluate_run(run, source, config.batch_size) for run in progress}
    baseline = arms.get(config.baseline, {}).get("accuracies")
    if baseline is None:
        print(f"no arm is called {config.baseline} (config.baseline): there are no p-values")
    for arm in arms.values():
        arm.update(compare(arm["accuracies"], baseline))
    result = {
        "name": config.name,
        "num_images": len(source),
        "class_names": list(source.class_names),
        "baseline": config.baseline,
        "arms": arms,
    }
    write_json(args.workdir / f"evaluation_{config.name}.json", result)
    print(table(arms))


def table(arms: dict[str, dict[str, Any]]) -> str:
    """The arms as lines of text."""
    width = max(map(len, arms))
    lines = [f"{'arm':{width}}  accuracy (%)  seeds  p against the baseline"]
    for name, arm in arms.items():
        p_value = "" if arm["p_value"] is None else f"{arm['p_value']:.2g}"
        accuracy = f"{100 * arm['mean']:6.2f} ± {100 * arm['std']:4.2f}"
        lines.append(f"{name:{width}}  {accuracy}  {len(arm['accuracies']):5}  {p_value}")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main, __doc__)
