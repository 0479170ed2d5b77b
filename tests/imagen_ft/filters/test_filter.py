"""imagen_ft.filter through its command line, on digits of which some have a wrong label."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest

from classifiers.extractors.extractor import Extractor
from imagen_ft import filter as command
from input_pipeline import sources
from input_pipeline.sources.digits import DIGIT_NAMES, digits
from input_pipeline.synthetic.writer import SyntheticWriter
from tests.support.commands import run
from tests.support.synthetic_set import write_shard

PER_CLASS, PLANTED = 6, 6
CONFIG = """
from configs.digits import filter

def get_config():
    config = filter.get_config("synthetic={folder}/set")
    config.real.source.split = "pool"
    {change}
    return config
"""


def means():
    """The mean of each digit."""
    pool = digits("pool")
    return np.stack([pool.images[pool.labels == label].mean(axis=0) for label in range(10)])


def nearest_mean(images):
    """The label of each image, as the judge has it."""
    return ((images[:, None] / 255 - means()[None] / 255) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)


def judge():
    """Knows a digit by the nearest of their means."""
    centres = jnp.asarray(means().reshape(10, -1) / 255)

    def apply(variables, images):
        pixels = images.reshape(len(images), -1) / 255
        squares = ((pixels[:, None] - centres[None]) ** 2).sum(axis=-1)
        return {"features": pixels, "logits": -10 * squares}

    return Extractor("judge", "", "0" * 64, apply, {"params": {}}, class_names=DIGIT_NAMES)


def known_digits():
    """Six of each that the judge knows, in the order of a set's plan."""
    pool = digits("pool")
    right = nearest_mean(pool.images) == pool.labels
    return np.concatenate(
        [np.flatnonzero(right & (pool.labels == label))[:PER_CLASS] for label in range(10)]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of 60 digits; those of number 0 of the classes 0 to 5 show the next class."""
    folder = tmp_path_factory.mktemp("filter")
    writer = SyntheticWriter(
        folder / "set", "digits", DIGIT_NAMES, (8, 8, 1), [PER_CLASS] * 10, 1, 60, {}
    )
    pool, rows = digits("pool"), known_digits()
    images = pool.images[rows].copy()
    planted = np.arange(PLANTED) * PER_CLASS
    images[planted] = pool.images[rows[planted + PER_CLASS + 1]]
    write_shard(writer, 0, images[writer.plan.indices(0)], [""] * 60)
    writer.finish()
    return folder


@pytest.fixture
def main(folder, monkeypatch):
    """Runs the command with a change of its config: the code."""
    monkeypatch.setattr(command, "open_extractor", lambda spec: judge())

    def main(change, workdir, *argv):
        path = folder / "config.py"
        path.write_text(CONFIG.format(folder=folder, change=change))
        return run(command.main, path, workdir, *argv)

    return main


def kept_of(folder, workdir, name="kept.json"):
    return sources.load(dict(name="synthetic", path=f"{folder}/set", keep=str(workdir / name)))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wrong_among(folder, source):
    """How many of a source's images show another digit than they say."""
    images = np.stack([source[i]["image"] for i in range(len(source))])
    return int((nearest_mean(images) != source.labels).sum())


def test_planted_mistakes_are_dropped(folder, main, tmp_path, capsys):
    whole = sources.load(dict(name="synthetic", path=f"{folder}/set"))
    assert wrong_among(folder, whole) == PLANTED
    before = contents(folder / "set")
    # An extractor whose weights need no path.
    inception = "config.filters.nearest_real.extractor = dict(name='inception')"
    assert main(f"config.num_shown = 3; {inception}", tmp_path) == 0
    assert contents(folder / "set") == before
    kept, random = kept_of(folder, tmp_path), kept_of(folder, tmp_path, "random.json")
    assert len(kept) == 60 - PLANTED and wrong_among(folder, kept) == 0
    # The random part has as many of each class, and is not better than all.
    assert np.bincount(random.labels).tolist() == [5] * PLANTED + [6] * (10 - PLANTED)
    assert wrong_among(folder, random) > 0
    out = capsys.readouterr().out
    assert "confidence > 0.1" in out and "54 of 60 images are kept (90.00%)" in out
    rows = list(csv.DictReader((tmp_path / "records.csv").read_text().splitlines()))
    assert [row["key"] for row in rows] == [whole.key(i) for i in range(60)]
    assert [row["key"] for row in rows if row["kept"] == "1"] == [kept.key(i) for i in range(54)]
    dropped = [row for row in rows if row["kept"] == "0"]
    assert all(float(row["nearest_real"]) < 0 for row in dropped)
    summary = json.loads((tmp_path / "filter.json").read_text())
    assert summary["filters"]["confidence"]["passing"] == 54
    first = summary["classes"][0]
    # All six zeros but one are kept, and are real ones of the pool.
    assert (first["images"], first["kept"]) == ("6", "5")
    assert float(first["recall, kept"]) > 0 and float(first["coverage, all"]) > 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 10 and "5 of 6 are kept" in page


def test_options(folder, main, tmp_path):
    """Features are kept, and the same run directory takes other rules."""
    assert main("del config.filters.nearest_real", tmp_path, "--config.per_class=3") == 0
    kept = kept_of(folder, tmp_path)
    assert np.bincount(kept.labels).tolist() == [3] * 10 and wrong_among(folder, kept) == 0
    features = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    change = "config.real = {}; del config.filters.nearest_real"
    flags = ["--config.balance=True", "--config.filters.confidence.limit=0.1"]
    assert main(change, tmp_path, *flags) == 0
    assert np.bincount(kept_of(folder, tmp_path).labels).tolist() == [5] * 10
    summary = json.loads((tmp_path / "filter.json").read_text())
    assert "recall, kept" not in summary["classes"][0]
    assert (
        features.items()
        <= {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}.items()
    )


FAULTS = {
    "config.filters = {}": "config.filters must have at least one filter",
    "config.filters.x = dict(score='beauty', extractor=dict(name='classifier', path='x'))": (
        "config.filters.x.score must be one of confidence"
    ),
    "config.filters.x = dict(score='margin')": "config.filters.x must have the field 'extractor'",
    "config.filters.confidence.extractor.name = 'dinov2'": (
        "config.filters.confidence.extractor has no field"
    ),
    "config.filters.confidence.extractor = dict(name='dinov2', path='x')": (
        "config.filters.confidence.extractor must be a classifier of the set's classes"
    ),
    "config.filters.confidence.extractor.path = ''": (
        "config.filters.confidence.extractor.path must be the weights"
    ),
    "config.real = {}": "config.real must be a set of real images for config.filters.nearest_real",
    "config.filters.nearest_real.score = 'distance'; del config.filters.nearest_real.limit": (
        "config.filters.nearest_real must have a limit or a share for the score 'distance'"
    ),
    "config.filters.nearest_real.share = 0.5": "must have a limit or a share, got both",
    "config.filters.confidence = dict(config.filters.confidence, limit=float('nan'))": (
        "config.filters.confidence.limit must be a number, or one per class, or 'chance'"
    ),
    "config.filters.confidence = dict(config.filters.confidence, limit=(0.1, 0.2))": (
        "config.filters.confidence.limit must be one number, or one for each of the 10 classes"
    ),
    "config.filters.confidence = dict(config.filters.confidence, limit=None, share=0)": (
        "config.filters.confidence.share must be above 0 and at most 1, got 0"
    ),
    "config.combine = 'both'": "config.combine must be one of all, any, got 'both'",
    "config.filters.nearest_real.limit = 9.0": (
        "config.filters must keep at least one image, got none of 60; loosen confidence"
    ),
    "config.per_class = 7": "must be at most the number of images of every class, got 7",
    "config.real.source.classes = (0, 1)": "config.real must have the 10 classes of the set, got 2",
    "config.real.source.classes = (1, 0, 2, 3, 4, 5, 6, 7, 8, 9)": (
        "config.real: label 0 is 'one', which is 1 in config.synthetic"
    ),
}


@pytest.mark.parametrize("change", FAULTS)
def test_wrong_input_ends_with_one_line(change, main, tmp_path, capsys):
    assert main(change, tmp_path / "run") == 2
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if "config." in line]
    assert len(told) == 1 and FAULTS[change] in told[0], lines
    assert not (tmp_path / "run" / "kept.json").exists()
