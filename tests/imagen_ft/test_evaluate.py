"""imagen_ft.evaluate through its command line, on digits and an untrained network."""

import contextlib
import dataclasses
import io
import json
import pickle
import re

import cv2
import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from classifiers.extractors.classifier import classifier
from imagen_ft import evaluate
from imagen_ft.evaluation import report, seeing
from imagen_ft.evaluation.extractors import KINDS
from imagen_ft.evaluation.image_sets import ImageSet
from imagen_ft.evaluation.measures import Measured
from imagen_ft.evaluation.references import References
from imagen_ft.metrics import reference
from imagen_ft.metrics.classes import diversity, recognizability
from imagen_ft.metrics.frechet import distance_at_infinity, frechet_distance
from imagen_ft.metrics.kernel_distance import kernel_distance
from imagen_ft.metrics.result import Conditions, Result
from imagen_ft.metrics.statistics import of_features
from input_pipeline.sources.digits import DIGIT_NAMES, digits
from input_pipeline.synthetic.writer import SyntheticWriter
from launch.errors import InputError
from tests.classifiers.evaluation import tiny
from tests.support.commands import run
from tests.support.synthetic_set import write_shard

NUM_IMAGES, COPIES, KERNEL = 60, 9, dict(subsets=3, subset_size=20, seed=2020)
CONFIG = """
from configs.digits import evaluate_images

def get_config():
    config = evaluate_images.get_config("runlocal,synthetic={folder}/set,extractor={folder}/run")
    config.kernel = {kernel!r}
    config.sliced.num_directions = 50
    del config.sets.validation
    config.sets.samples = dict(source=dict(name="npz", path="{folder}/samples.npz"))
    config.num_worst = 2
    return config
"""


def images_of_set():
    """Noise but for some first images, which are the pool's."""
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 8, 8, 1), np.uint8)
    images[:COPIES] = digits("pool").images[:COPIES]
    return images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, a synthetic set and an npz, and the config that compares them."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny.write_run(folder / "run", tiny.variables, model=tiny.FIELDS)
    writer = SyntheticWriter(folder / "set", "noise", DIGIT_NAMES, (8, 8, 1), [6] * 10, 1, 60, {})
    write_shard(writer, 0, images_of_set()[writer.plan.indices(0)], [""] * NUM_IMAGES)
    writer.finish()
    test = digits("test")
    np.savez(folder / "samples.npz", arr_0=test.images[:200], arr_1=test.labels[:200])
    (folder / "config.py").write_text(CONFIG.format(folder=folder, kernel=KERNEL))
    return folder


@pytest.fixture(scope="module")
def measured(folder):
    with contextlib.redirect_stderr(io.StringIO()) as progress:
        assert run(evaluate.main, folder / "config.py", folder / "measured") == 0
    (folder / "progress.txt").write_text(progress.getvalue())
    return folder / "measured"


def found(workdir, name, measure):
    """A result."""
    content = json.loads((workdir / "evaluation.json").read_text())
    (result,) = [r for r in content["sets"][name]["results"] if r["measure"] == measure]
    return result


def features(folder, images):
    """All at once."""
    extractor = classifier(folder / "run")
    return np.asarray(extractor.apply(extractor.variables, images)["features"])


def test_numbers_are_those_of_the_features(folder, measured):
    ours, theirs = features(folder, images_of_set()), features(folder, digits("pool").images)
    distance = frechet_distance(of_features(ours), of_features(theirs))
    result = found(measured, "set", "fd (run)")
    assert result["value"] == pytest.approx(distance, rel=1e-4)
    assert found(measured, "samples", "fd (run)")["value"] < distance / 2
    kernel = found(measured, "set", "kd (run)")
    expected = kernel_distance(ours, theirs, **KERNEL)
    assert (kernel["value"], kernel["deviation"]) == pytest.approx(expected, rel=1e-3)
    conditions = result["conditions"]
    assert conditions["num_images"] == NUM_IMAGES and conditions["class_balance"] == "balanced"
    assert (conditions["file_format"], conditions["uint8_rule"]) == ("png", "round")
    assert found(measured, "set", "precision (run)")["conditions"]["comparison"] == "<="
    # Real digits are as good as other real digits, noise is not.
    assert found(measured, "samples", "relative fd (run)")["value"] < 2
    assert found(measured, "set", "relative fd (run)")["value"] > 5


def test_copies_are_found(measured):
    content = json.loads((measured / "evaluation.json").read_text())
    share = found(measured, "set", "authentic (run)")["value"]
    assert share <= 1 - COPIES / NUM_IMAGES
    for row in content["sets"]["set"]["worst"]:
        assert row["ratio"] == pytest.approx(0, abs=1e-5)
        assert row["nearest"] == f"pool:{row['image']}" and int(row["image"]) < COPIES


def test_the_report_shows_all(measured, folder, capsys):
    page = (measured / "report.html").read_text()
    # Samples of real images and of each set; of each its copies, best and worst classes.
    assert page.count("<img ") == 1 + 2 * 4
    assert "most like copies" in page and "class, best first" in page and ">fid" not in page
    assert run(evaluate.main, folder / "config.py", measured) == 0
    out = capsys.readouterr().out
    assert "fd (run)" in out and "relative fd (run)" in out
    assert out.endswith(f"see {measured / 'report.html'}\n")
    notes = json.loads((measured / "evaluation.json").read_text())["differences"]
    note, other, relative = notes
    assert note.startswith("samples and set are not comparable in fd, is, ")
    assert note.endswith(": 200 and 60 images, class balance drawn and balanced")
    assert "in kd, " in other and other.endswith(": class balance drawn and balanced")
    assert "in relative fd: 100 and 60 images, " in relative
    assert f"note: {note}" in " ".join(out.split()) and note in page
    assert max(map(len, out[out.index("note: ") :].splitlines()[:-1])) <= 100


def test_each_progress_bar_says_what_it_is_of(folder, measured):
    names = re.findall(r"^(.+):   0%", (folder / "progress.txt").read_text(), re.M)
    seen = ("reference.source", "reference.held_out", "samples", "set")
    expected = {f"features of {name}" for name in seen}
    assert set(names) == expected | {"measures of samples", "measures of set"}


@pytest.mark.parametrize("ties", [True, False])
def test_classes_that_tie_are_not_told_apart(folder, tmp_path, ties):
    """As where the held-out images are measured themselves."""
    images = ImageSet("real", digits("validation"), "none", "unknown")
    values = [1.0 if ties else 1.0 + label for label in range(10)]
    classes = {i: dict(num_images=10, distance=0.1 * i, relative=x) for i, x in enumerate(values)}
    conditions = Conditions(*["any"] * 6, num_images=100, class_balance="", reference_digest=None)
    found = Measured([Result("is", 1.0, conditions)], classes, [])
    extractor, references = classifier(folder / "run"), References(None, None, None)
    arguments = epath.Path(tmp_path), ConfigDict(), extractor, [images], references
    report.write(*arguments, {"real": found})
    page = (tmp_path / "report.html").read_text()
    assert ("All 10 classes tie: the relative distance of each is 1." in page) is ties
    assert (">class, best first<" in page) is ("worst classes" in page) is not ties
    assert (len(report.shown(images, found)) == 40) is ties  # samples alone


def test_what_is_kept_is_not_done_again(folder, measured, monkeypatch, capsys):
    before = (measured / "evaluation.json").read_bytes()

    def compute(*args, **fields):
        raise InputError("computed")

    monkeypatch.setattr(seeing, "features", compute)
    assert run(evaluate.main, folder / "config.py", measured) == 0
    assert (measured / "evaluation.json").read_bytes() == before
    capsys.readouterr()
    other = "--config.density_coverage.k=4"
    assert run(evaluate.main, folder / "config.py", measured, other) == 2
    assert capsys.readouterr().err == "error: computed\n"


def test_a_dry_run_counts_the_extractors_parameters(folder, capsys):
    assert run(evaluate.main, folder / "config.py", None, "--dry_run") == 0
    assert (
        "run: " in (out := capsys.readouterr().out) and " parameters\noptional fields that" in out
    )


ONLY = "--config.measures=('frechet',)"


def test_statistics_of_a_file(folder, measured, tmp_path, capsys):
    pooled = reference.read(measured / "reference.npz")
    made_by = classifier(folder / "run").made_from
    assert pooled.extractor == made_by
    # Other tools' files do not say of which extractor they are.
    path = tmp_path / "statistics.npz"
    reference.write(path, pooled.pooled)
    file = f"--config.reference.statistics={path}"
    assert run(evaluate.main, folder / "config.py", tmp_path / "x", ONLY, file) == 0
    value = found(measured, "set", "fd (run)")["value"]
    assert found(tmp_path / "x", "set", "fd (run)")["value"] == pytest.approx(value, rel=1e-6)
    capsys.readouterr()
    reference.write(path, pooled.pooled, extractor={**made_by, "rule": "another"})
    assert run(evaluate.main, folder / "config.py", tmp_path / "y", ONLY, file) == 2
    assert "compute statistics with the same extractor and rule" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_fid_and_sfid_are_on_inception_alone(folder, measured, tmp_path, monkeypatch):
    assert [name for name, kind in KINDS.items() if not kind.suffix] == ["inception"]
    assert [name for name, kind in KINDS.items() if kind.has_spatial] == ["inception"]
    whole = classifier(folder / "run")

    def corners(variables, images):
        taps = whole.apply(variables, images)
        return taps | {"spatial": taps["spatial"][:, ::7, ::7, :3]}

    extractor = dataclasses.replace(whole, name="corners", apply=jax.jit(corners))
    stand_in = dataclasses.replace(
        KINDS["classifier"], open=lambda fields: extractor, suffix="", has_spatial=True
    )
    monkeypatch.setitem(KINDS, "classifier", stand_in)
    measures = "--config.measures=('frechet', 'spatial_frechet')"
    assert run(evaluate.main, folder / "config.py", tmp_path / "x", measures) == 0
    ours, theirs = (
        of_features(np.asarray(corners(whole.variables, images)["spatial"]).reshape(-1, 12))
        for images in (images_of_set(), digits("pool").images)
    )
    distance = frechet_distance(ours, theirs)
    assert found(tmp_path / "x", "set", "sfid")["value"] == pytest.approx(distance, rel=1e-3)
    fid, fd = found(tmp_path / "x", "set", "fid"), found(measured, "set", "fd (run)")
    assert fid["value"] == pytest.approx(fd["value"], rel=1e-4)


STATISTICS = {
    "no mu": (lambda path: np.savez(path, sigma=np.eye(3)), "mu"),
    "no sigma": (lambda path: np.savez(path, mu=np.zeros(3)), "sigma"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"mu": 1})), "is a pickle, which"),
    "another width": (lambda path: np.savez(path, mu=np.zeros(3), sigma=np.eye(3)), "3"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_wrong_statistics(folder, tmp_path, capsys, name):
    make, said = STATISTICS[name]
    make(path := tmp_path / "statistics.npz")
    file = f"--config.reference.statistics={path}"
    assert run(evaluate.main, folder / "config.py", tmp_path / "x", ONLY, file) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not (tmp_path / "x/evaluation.json").exists()


def test_features_that_are_not_finite(folder, tmp_path, monkeypatch, capsys):
    whole = classifier(folder / "run")
    spoilt = jax.jit(
        lambda variables, images: {"features": jax.numpy.full((len(images), 3), np.nan)}
    )
    extractor = dataclasses.replace(whole, apply=spoilt)
    kind = dataclasses.replace(KINDS["classifier"], open=lambda fields: extractor)
    monkeypatch.setitem(KINDS, "classifier", kind)
    assert run(evaluate.main, folder / "config.py", tmp_path / "x", ONLY) == 2
    assert "must be finite, got NaN" in capsys.readouterr().err.splitlines()[-1]


def test_classes_that_a_classifier_sees(folder, tmp_path):
    measures = "--config.measures=('recognizability', 'diversity', 'frechet_infinity')"
    points, few = "--config.frechet_infinity.num_points=3", "--config.allow_few_images=True"
    workdir = tmp_path / "x"
    assert run(evaluate.main, folder / "config.py", workdir, measures, points, few) == 0
    extractor, test = classifier(folder / "run"), digits("test")
    images, labels = test.images[:200], test.labels[:200]
    taps = jax.device_get(extractor.apply(extractor.variables, images))
    score, _ = recognizability(taps["logits"].argmax(axis=1), labels)
    spread, _ = diversity(taps["features"], labels)
    real = of_features(features(folder, digits("pool").images))
    line = distance_at_infinity(taps["features"], real, 3, allow_few_images=True)
    assert found(workdir, "samples", "recognizability (run)")["value"] == pytest.approx(score)
    assert found(workdir, "samples", "diversity (run)")["value"] == pytest.approx(spread, rel=1e-4)
    infinite = found(workdir, "samples", "fd infinity (run)")
    assert infinite["value"] == pytest.approx(line, rel=1e-2)
    assert ["num_points", 3] in infinite["conditions"]["settings"]


def folder_of_two_sizes(path):
    (path / "zero").mkdir(parents=True)
    (path.parent / "none").mkdir()
    for size in (8, 9):
        image = cv2.imencode(".png", np.zeros((size, size, 3), np.uint8))[1]
        (path / f"zero/{size}.png").write_bytes(image.tobytes())


BAD = {
    "few images": (
        lambda path: np.savez(path, arr_0=np.zeros((5, 8, 8, 1), np.uint8)),
        "the number of images must be above",
    ),
    "a pickle": (
        lambda path: path.write_bytes(pickle.dumps({"arr_0": 1})),
        "is a pickle, which could run any code",
    ),
    "pickled arrays": (
        lambda path: np.savez(path, arr_0=np.array([{}])),
        "is damaged or holds pickles",
    ),
    "floats": (
        lambda path: np.savez(path, arr_0=np.zeros((5, 8, 8, 1))),
        "arr_0 must be images, uint8 [n, h, w, c], got float64",
    ),
    "statistics": (
        lambda path: np.savez(path, mu=np.zeros(3)),
        "arr_0 must be images, uint8 [n, h, w, c], got none",
    ),
    "labels": (
        lambda path: np.savez(path, arr_0=np.zeros((5, 8, 8, 1), np.uint8), arr_1=np.full(5, -1)),
        "arr_1 must be the labels",
    ),
    "no images": (
        lambda path: np.savez(path, arr_0=np.zeros((0, 8, 8, 1), np.uint8)),
        "the set has no images",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_samples(folder, tmp_path, capsys, name):
    make, said = BAD[name]
    path = tmp_path / "samples.npz"
    with path.open("wb") as file:
        file.close()
        make(path)
    samples = f"--config.sets.samples.source.path={path}"
    assert run(evaluate.main, folder / "config.py", tmp_path / "x", ONLY, samples) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: config.sets.samples: ") and said in error
    assert not (tmp_path / "x/evaluation.json").exists()


WRONG = {
    "measure": ("--config.measures=('fid',)", "must be some of frechet, "),
    "sfid": ("--config.measures=('spatial_frechet',)", "needs Inception"),
    "extractor": ("--config.extractor.name=lpips", "config.extractor.name must be one of "),
    "no run": ("--config.extractor.path=nowhere", "config.extractor: nowhere is not a run"),
    "no reference": ("--config.reference.statistics=no.npz", "no.npz does not exist"),
    "batch": ("--config.batch_size=0", "batch_size"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_configs(folder, tmp_path, capsys, name):
    flag, said = WRONG[name]
    assert run(evaluate.main, folder / "config.py", tmp_path / "x", flag) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


SPECS = {
    "sizes": (
        "dict(source=dict(name='image_folder', path='{path}'))",
        "must all have the same size",
    ),
    "empty": ("dict(source=dict(name='image_folder', path='{path}/../none'))", "has no folders"),
    "field": ("dict(source=dict(name='digits', split='test'), size=8)", "has no field 'size'"),
}


@pytest.mark.parametrize("name", SPECS)
def test_wrong_sets(folder, tmp_path, capsys, name):
    spec, said = SPECS[name]
    folder_of_two_sizes(tmp_path / "images")
    text = (folder / "config.py").read_text()
    spec = spec.format(path=tmp_path / "images")
    text = text.replace(
        "    config.num_worst", f"    config.sets.bad = {spec}\n    config.num_worst"
    )
    (tmp_path / "config.py").write_text(text)
    assert run(evaluate.main, tmp_path / "config.py", tmp_path / "x", ONLY) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x/evaluation.json").exists()
