"""How many planted mistakes a filter finds among photographs; prints their shares.

python -m tests.imagen_ft.filters.planted [--pixels=128] [--epochs=8]

Of half of CIFAR-10's sample a tenth gets the label of another class. The judge is
EfficientNet-Lite0, which is trained on the other half: first its head, then for so many epochs all
of it (3 to 4 minutes each on 2 cores). CIFAR10_SAMPLE may name the zip.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression

from classifiers import train
from classifiers.extractors.features import features
from classifiers.weights.importing import import_run
from imagen_ft import filter as filter_command
from input_pipeline.source import Subset
from input_pipeline.sources.image_folder import ImageFolder
from launch.files import read_json
from launch.runtime.run import Run
from tests.imagen_ft.metrics.ordering import network
from tests.support import commands
from tests.support.real_images import lite0, photographs
from tests.support.written_runs import write_run

_SEED, _SHARE = 0, 0.1
FILTER = """
from configs.cifar10 import filter

def get_config():
    config = filter.get_config("share=0.9,extractor={folder}/{judge}")
    config.synthetic = dict(source=dict(name="image_folder", path="{folder}/planted"))
    config.real = {{}}
    config.filters.confidence.each_class = False
    config.batch_size = 125
    return config
"""


TRAIN = """
from ml_collections import ConfigDict

from configs.cifar10 import resnet
from launch.runtime.config import plain
from launch.runtime.run import Run

def get_config():
    config = resnet.get_config()
    config.model = ConfigDict(plain(Run.open("{folder}/head").config.model))
    config.init_from = "{folder}/head"
    config.train_sources = dict(real=dict(name="image_folder", path="{folder}/known"))
    config.evaluation_source = dict(
        name="image_folder", path="{folder}/cifar10_sample", root="test"
    )
    config.augment = dict(size={size}, crop=dict(scale=(0.5, 1.0)), flip=True)
    config.evaluation = dict(size={size}, crop_ratio=1.0)
    config.batch_size = 64
    steps = {images} // config.batch_size  # an epoch
    config.total_steps = {epochs} * steps
    config.label_smoothing = 0.0
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=steps // 2,
        b1=0.9,
        b2=0.999,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    config.evaluate_every = 2 * steps
    config.evaluation_batch_size = 125
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


def write(source, folder, labels):
    """Writes images into folders of classes; the keys of all."""
    keys = []
    for i, label in enumerate(labels):
        keys.append(f"{source.class_names[label]}/{i:05d}.png")
        path = folder / keys[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), source[i]["image"][..., ::-1])
    return keys


def plant(source, folder):
    """Writes images into folders of classes, a tenth into a wrong one; the keys of these."""
    rng = np.random.default_rng(_SEED)
    wrong = rng.permutation(len(source))[: round(_SHARE * len(source))]
    labels = source.labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    keys = write(source, folder, labels)
    return {keys[i] for i in wrong}


def write_head(source, folder, size):
    """The run `head`: EfficientNet-Lite0 with a head of ten classes that is fitted to features."""
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
    write_run(folder / "head", ConfigDict(run.config).to_dict(), variables)


def found(folder, size, epochs):
    """The share of planted mistakes among what the filter drops, and what the random part drops."""
    photos = ImageFolder(photographs("cifar10_sample", folder), root="train")
    known, others = (Subset(photos, rows) for rows in halves(photos))
    write_head(known, folder, size)
    if epochs:
        write(known, folder / "known", known.labels)
        fields = dict(folder=folder, size=size, images=len(known), epochs=epochs)
        (folder / "train_config.py").write_text(TRAIN.format(**fields))
        assert commands.run(train.main, folder / "train_config.py", folder / "judge") == 0
    planted = plant(others, folder / "planted")
    judge = "judge" if epochs else "head"
    (folder / "filter_config.py").write_text(FILTER.format(folder=folder, judge=judge))
    assert commands.run(filter_command.main, folder / "filter_config.py", folder / "filter") == 0
    shares = {}
    for name in ("kept", "random"):
        kept = set(read_json(folder / "filter" / f"{name}.json"))
        shares[name] = len(planted - kept) / len(planted), 1 - len(kept) / len(others)
    return shares


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=8, help="0 trains the head alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for part, (share, dropped) in found(Path(name), given.pixels, given.epochs).items():
            told = f"{100 * share:.1f}% of the planted are found at {100 * dropped:.1f}% dropped"
            print(f"{part}: {told}")
