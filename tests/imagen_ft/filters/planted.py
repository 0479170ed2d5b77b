"""How many planted mistakes a filter finds among photographs; prints their shares.

python -m tests.imagen_ft.filters.planted [PIXELS]

Of half of CIFAR-10's sample a tenth gets the label of another class. The judge is
EfficientNet-Lite0 with a head that is trained on the other half, at so many pixels (128).
CIFAR10_SAMPLE may name the zip.
"""

import sys
import tempfile
from pathlib import Path

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression

from classifiers.extractors.features import features
from classifiers.weights.importing import import_run
from imagen_ft import filter as command
from input_pipeline.source import Subset
from input_pipeline.sources.image_folder import ImageFolder
from launch.files import read_json
from launch.runtime import app
from launch.runtime.run import Run
from tests.imagen_ft.metrics.ordering import network
from tests.support.real_images import lite0, photographs
from tests.support.written_runs import write_run

_SEED, _SHARE = 0, 0.1
CONFIG = """
from configs.cifar10 import filter

def get_config():
    config = filter.get_config("share=0.9,extractor={folder}/judge")
    config.synthetic = dict(source=dict(name="image_folder", path="{folder}/planted"))
    config.real = {{}}
    config.filters.confidence.each_class = False
    config.batch_size = 125
    return config
"""


def halves(source):
    """Positions of two halves, stratified."""
    rng = np.random.default_rng(_SEED)
    members = [rng.permutation(np.flatnonzero(source.labels == label)) for label in range(10)]
    return [
        np.concatenate([rows[: len(rows) // 2] for rows in members]),
        np.concatenate([rows[len(rows) // 2 :] for rows in members]),
    ]


def plant(source, folder):
    """Writes images into folders of classes, a tenth into a wrong one; the keys of these."""
    rng = np.random.default_rng(_SEED)
    wrong = set(rng.permutation(len(source))[: round(_SHARE * len(source))].tolist())
    planted = set()
    for i in range(len(source)):
        shift = int(rng.integers(1, 10)) if i in wrong else 0
        name = source.class_names[(source.labels[i] + shift) % 10]
        path = folder / name / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), source[i]["image"][..., ::-1])
        if shift:
            planted.add(f"{name}/{i:05d}.png")
    return planted


def write_judge(source, folder, size):
    """A run: EfficientNet-Lite0 with a head of ten classes that is fitted to features."""
    extractor = network(folder, size)
    seen = features(extractor, source, folder / "features", batch_size=125)["features"]
    mean, scale = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    head = LogisticRegression(C=0.003, max_iter=500).fit((seen - mean) / scale, source.labels)
    kernel = (head.coef_ / scale).T
    options = dict(model="efficientnet_lite0", pixels="efficientnet_lite", size=size)
    import_run(lite0(folder), str(folder / "ten"), "efficientnet", num_classes=10, **options)
    run = Run.open(folder / "ten")
    variables = jax.device_get(run.seeds[0].variables(run.seeds[0].shapes()))
    variables["params"]["head"] = {
        "kernel": kernel.astype(np.float32),
        "bias": (head.intercept_ - mean @ kernel).astype(np.float32),
    }
    write_run(folder / "judge", ConfigDict(run.config).to_dict(), variables)


def found(folder, size):
    """The share of planted mistakes among what the filter drops, and what the random part drops."""
    photos = ImageFolder(photographs("cifar10_sample", folder), root="train")
    known, others = (Subset(photos, rows) for rows in halves(photos))
    write_judge(known, folder, size)
    planted = plant(others, folder / "planted")
    (folder / "config.py").write_text(CONFIG.format(folder=folder))
    argv = ["filter", f"--config={folder}/config.py", f"--workdir={folder}/filter"]
    try:
        app.run(command.main, "", command.define_flags, argv=argv, lacking=command.lacking)
    except SystemExit as ended:
        assert not ended.code, ended.code
    shares = {}
    for name in ("kept", "random"):
        kept = set(read_json(folder / "filter" / f"{name}.json"))
        shares[name] = len(planted - kept) / len(planted), 1 - len(kept) / len(others)
    return shares


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    with tempfile.TemporaryDirectory() as name:
        for part, (share, dropped) in found(Path(name), size).items():
            told = f"{100 * share:.1f}% of the planted are found at {100 * dropped:.1f}% dropped"
            print(f"{part}: {told}")
