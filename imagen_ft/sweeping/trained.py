"""CAS of points: classifiers that are trained on a point's images alone and tested on real ones.

The measured images are written as a synthetic set, which `classifiers.train` reads. As this package
may not import it, it is run as a command line, and so is `classifiers.evaluate`.
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
    """Optional fields that `config.cas` leaves out."""
    return below("cas", cas, {**dict.fromkeys(_NEEDS, unset(str)), "overrides": ()})


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `InputError` if a field of `config.cas` is missing or unknown."""
    for name in _NEEDS:
        if name not in config.cas:
            raise InputError(f"config.cas.{name} is missing; set it, as in the configs' sweep.py")
    known = (*_NEEDS, *_MAY_HAVE)
    if unknown := sorted(set(config.cas) - set(known)):
        raise InputError(f"config.cas has no field {unknown[0]!r}; use {', '.join(known)}")


def write_set(bench: Bench, sets: Sequence[ImageSet], folder: epath.Path) -> None:
    """Writes the images of a point, given in portions, as a synthetic set.

    Every process must call it. A finished set is left alone.
    """
    if decide_on_first_process((folder / MANIFEST).exists):
        return
    for images in sets:
        assert images.drawn is not None
        images.drawn.draw()
    on_first_process(functools.partial(_write, bench, sets, folder))


def make_jobs(config: ml_collections.ConfigDict, workdir: Path, names: Sequence[str]) -> list[Job]:
    """A training and an evaluation of each point's classifiers."""
    jobs = []
    digest = json_digest(plain(config.cas))
    for name in names:
        folder = Path(point_folder(epath.Path(workdir), name))
        run = folder / RUN
        # The config of the classifier calls its source of synthetic images 'synthetic'.
        source = f"--config.train_sources.synthetic.path={folder / SET}"
        overrides = [f"--config.{override}" for override in config.cas.get("overrides", ())]
        train = ("classifiers.train", f"--config={config.cas.train}", f"--workdir={run}")
        manifest = (folder / SET / MANIFEST,)
        jobs.append(
            Job(f"train-{name}", (*train, source, *overrides), manifest, run, digest=digest)
        )
        evaluate = ("classifiers.evaluate", f"--config={config.cas.evaluation}", f"--workdir={run}")
        # The digest makes both jobs run again when config.cas changes.
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
    """Trains and evaluates the classifiers of these points, those that are missing.

    `lanes` is command lines at a time; for `launcher` and `options` see `JobRunner`. Raises
    `InputError` if a point has no set.
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
    """Scores of the points whose evaluation is there, by name."""
    scores = {}
    for name in names if config.cas else ():
        path = point_folder(workdir, name) / RUN / f"evaluation_{config.cas.set}.json"
        if path.exists():
            (arm,) = read_fields(path, arms=dict)["arms"].values()
            accuracies = np.asarray(arm["accuracies"], float)
            scores[name] = Score(float(accuracies.mean()), float(accuracies.std()))
    return scores


def _write(bench: Bench, sets: Sequence[ImageSet], folder: epath.Path) -> None:
    # 1. Which image is where: portions follow each other.
    real = bench.references.source
    labels = np.concatenate([images.source.labels for images in sets])
    starts = np.cumsum([0, *(len(images.source) for images in sets)])
    first = sets[0].source[0]["image"]
    encoding = dict(plain(bench.config.cascade.get("encoding", {"format": "png"})))
    encoding.pop("size", None)
    # 2. A set as imagen_ft.generate writes it.
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
    # 3. The missing shards; a set numbers its images class by class.
    order = np.argsort(labels, kind="stable")
    for shard in writer.pending_shards():
        pairs = []
        for i in order[writer.plan.indices(shard)].tolist():
            portion = int(np.searchsorted(starts, i, side="right")) - 1
            image = sets[portion].source[i - int(starts[portion])]["image"]
            pairs.append((writer.encode(image), bench.prompts[int(labels[i])]))
        writer.write_encoded(shard, pairs)
    writer.finish(make_card(writer, writer.config["provenance"]), code_version())
