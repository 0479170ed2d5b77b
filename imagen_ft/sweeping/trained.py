"""CAS of points: a classifier is trained on a point's images alone, and sees real ones at the end.

The images that were measured are written as a generated set, which `classifiers.train` reads; this
room may not import it, and so runs it, and `classifiers.evaluate`, as command lines.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np
from etils import epath

from imagen_ft.evaluation.image_sets import ImageSet
from imagen_ft.sweeping.bench import Bench
from imagen_ft.sweeping.rows import Score, point_folder
from input_pipeline.synthetic.card import make_card
from input_pipeline.synthetic.writer import MANIFEST, SyntheticWriter
from launch.code_version import code_version
from launch.errors import InputError
from launch.files import json_digest, read_fields
from launch.jobs.runner import Job, JobRunner
from launch.runtime.config import plain
from launch.runtime.devices.distributed import decide_on_first_process, on_first_process
from launch.runtime.optional_fields import Defaults, below, unset

SET, RUN = "set", "classifier"
_NEEDS, _MAY_HAVE = ("train", "evaluation", "set"), ("overrides", "environment")


def lacking_in_cas(cas: ml_collections.ConfigDict) -> Defaults:
    """Fields of `config.cas` that a config lacks."""
    return below("cas", cas, {**dict.fromkeys(_NEEDS, unset(str)), "overrides": ()})


def check(config: ml_collections.ConfigDict) -> None:
    """Looks at `config.cas`.

    Raises:
        InputError: a field is missing or unknown.
    """
    for name in _NEEDS:
        if name not in config.cas:
            raise InputError(
                f"config.cas.{name} must be there, got none; see the configs' sweep.py"
            )
    known = (*_NEEDS, *_MAY_HAVE)
    if unknown := sorted(set(config.cas) - set(known)):
        raise InputError(f"config.cas has no field {unknown[0]!r}; use {', '.join(known)}")


def write_set(bench: Bench, sets: Sequence[ImageSet], folder: epath.Path) -> None:
    """Writes the images of a point as a generated set; all processes have to call it.

    Args:
        bench: of the sweep.
        sets: portions of its images, in order.
        folder: where to.
    """
    if decide_on_first_process((folder / MANIFEST).exists):
        return
    for images in sets:
        assert images.drawn is not None
        images.drawn.draw()
    on_first_process(functools.partial(_write, bench, sets, folder))


def make_jobs(config: ml_collections.ConfigDict, workdir: Path, names: Sequence[str]) -> list[Job]:
    """A training and an evaluation for each of these points."""
    jobs = []
    digest = json_digest(plain(config.cas))
    for name in names:
        folder = Path(point_folder(epath.Path(workdir), name))
        run = folder / RUN
        source = f"--config.train_sources.generated.path={folder / SET}"
        overrides = [f"--config.{override}" for override in config.cas.get("overrides", ())]
        train = ("classifiers.train", f"--config={config.cas.train}", f"--workdir={run}")
        manifest = (folder / SET / MANIFEST,)
        jobs.append(
            Job(f"train-{name}", (*train, source, *overrides), manifest, run, digest=digest)
        )
        evaluate = ("classifiers.evaluate", f"--config={config.cas.evaluation}", f"--workdir={run}")
        output = run / f"evaluation_{config.cas.set}.json"
        jobs.append(Job(f"evaluate-{name}", evaluate, (), output, (f"train-{name}",), 1.0, digest))
    return jobs


def run_jobs(
    config: ml_collections.ConfigDict,
    workdir: Path,
    names: Sequence[str],
    lanes: int,
    launcher: Sequence[str],
    options: Sequence[str],
) -> None:
    """Trains and evaluates the classifiers of these points that are not there yet.

    Args:
        config: of the task.
        workdir: of the sweep.
        names: of the points.
        lanes: command lines at a time.
        launcher: see `JobRunner`.
        options: see `JobRunner`.

    Raises:
        InputError: a point has no set.
    """
    for name in names:
        path = point_folder(epath.Path(workdir), name) / SET / MANIFEST
        if not path.exists():
            raise InputError(
                f"{path.parent} does not exist; run the same command without --cas first"
            )
    environment = {name: str(value) for name, value in config.cas.get("environment", {}).items()}
    jobs = make_jobs(config, workdir, names)
    JobRunner(workdir / "cas", jobs, lanes, environment, launcher, options).run()


def read_scores(
    config: ml_collections.ConfigDict, workdir: epath.Path, names: Sequence[str]
) -> Mapping[str, Score]:
    """The scores that are there, by name of the point."""
    scores = {}
    for name in names if config.cas else ():
        path = point_folder(workdir, name) / RUN / f"evaluation_{config.cas.set}.json"
        if path.exists():
            (arm,) = read_fields(path, arms=dict)["arms"].values()
            accuracies = np.asarray(arm["accuracies"], float)
            scores[name] = Score(float(accuracies.mean()), float(accuracies.std()))
    return scores


def _write(bench: Bench, sets: Sequence[ImageSet], folder: epath.Path) -> None:
    """All shards that are missing, for this process alone."""
    real = bench.references.source
    labels = np.concatenate([images.source.labels for images in sets])
    starts = np.cumsum([0, *(len(images.source) for images in sets)])
    first = sets[0].source[0]["image"]
    encoding = dict(plain(bench.config.cascade.get("encoding", {"format": "png"})))
    encoding.pop("size", None)
    writer = SyntheticWriter(
        folder,
        name="sweep",
        class_names=real.source.class_names if real else bench.prompts,
        image_shape=first.shape,
        counts=np.bincount(labels, minlength=len(bench.prompts)).tolist(),
        copies=1,
        images_per_shard=bench.config.cascade.get("images_per_shard", 0),
        provenance={"images": [images.digest() for images in sets]},
        encoding=encoding,
    )
    # A set counts its images class by class.
    order = np.argsort(labels, kind="stable")
    for shard in writer.pending_shards():
        pairs = []
        for i in order[writer.plan.indices(shard)].tolist():
            portion = int(np.searchsorted(starts, i, side="right")) - 1
            image = sets[portion].source[i - int(starts[portion])]["image"]
            pairs.append((writer.encode(image), bench.prompts[int(labels[i])]))
        writer.write_encoded(shard, pairs)
    writer.finish(make_card(writer, writer.config["provenance"]), code_version())
