"""Real guidance by commands: a base that begins with real images in place of noise."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_ft import generate, sample
from imagen_ft.cascade import Cascade, starts
from imagen_ft.cascade.starts import Starts
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.evaluation.sampled import check_sampled
from imagen_ft.generation import worker
from input_pipeline import sources
from input_pipeline.augment.resize import square
from input_pipeline.source import ArraySource
from input_pipeline.synthetic.source import SyntheticSource
from input_pipeline.synthetic.verify import verify
from launch import files
from launch.errors import InputError
from tests.imagen_ft.test_generate import contents
from tests.support import commands, small_cascade
from tests.support.image_folder import encoded, picture, write_folder

NAMES, COUNTS = small_cascade.NAMES, {"ab": 4, "c": 0, "de": 3}
STEPS, SKIPPED = 64, 62
CONFIG = """
from ml_collections import ConfigDict
from tests.imagen_ft import test_starts

def get_config():
    return test_starts.config({counts!r})
"""


def config(counts=""):
    """Of all commands that draw: one stage of 8 px in colour."""
    network, sampling = small_cascade.STAGES[0]
    network = dict(network, size=8, channels=3, schedule="cosine")
    sampler = dict(small_cascade.SAMPLER, num_steps=STEPS)
    options = dict(sampler=sampler, threshold_percentile=100.0, run="")
    stages = dict(base8=dict(sampling, stage=network, **options))
    fields = dict(stages=stages, batch_size=5, class_names=NAMES, text=small_cascade.TEXT, seed=4)
    fields |= dict(name="set", counts=counts, copies=2, images_per_shard=4)
    return ConfigDict(fields | dict(images_per_prompt=2, show_stages=False))


@functools.cache
def cascade():
    stages = tuple(make_stages(config()).values())
    variables = (small_cascade.random_variables(stages[0], 0),)
    encoder = small_cascade.encoder()
    return Cascade(stages, variables, encoder, NAMES, ("",), config(), batch_size=5)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of photographs, none of them of the base's size; and the config."""
    folder = tmp_path_factory.mktemp("work")
    named = {
        f"{name}/{i}.png": encoded(picture(9 + i, 12, seed=10 * label + 2 * i))
        for label, name in enumerate(NAMES)
        for i in range(4)
        if name != "c"
    }
    write_folder(folder / "real", named)
    (folder / "counts.json").write_text(json.dumps(COUNTS))
    (folder / "config.py").write_text(CONFIG.format(counts=str(folder / "counts.json")))
    with pytest.MonkeyPatch.context() as patch:
        load = lambda config, mesh=None, prompts=(): cascade()  # noqa: E731
        for task in (generate, sample):
            patch.setattr(task, "load_cascade", load)
        patch.setattr(worker, "code_version", lambda: "")
        yield folder


def begin(folder, skip_steps=SKIPPED):
    spec = dict(name="image_folder", path=folder / "real")
    start = [f"--config.start.{name}={value}" for name, value in spec.items()]
    return [*start, f"--config.skip_steps={skip_steps}"]


def real(folder):
    """By class, its images as the base has them."""
    source = sources.load(dict(name="image_folder", path=str(folder / "real")))
    images = [square(source[i]["image"], 8) for i in range(len(source))]
    return {name: np.stack(images[4 * k : 4 * k + 4]) for k, name in enumerate(source.class_names)}


def nearest(image, others):
    """The distance to the nearest of some images, and which it is."""
    distances = np.abs(others.astype(float) - image).mean((1, 2, 3))
    return distances.min(), int(distances.argmin())


@pytest.fixture(scope="module")
def whole(work):
    folder = work / "whole"
    assert not commands.run(generate.main, work / "config.py", folder, *begin(work))
    return folder


def test_a_set_is_close_to_real_images_of_its_classes(work, whole):
    photographs, source = real(work), SyntheticSource(whole)
    assert np.bincount(source.labels).tolist() == [8, 0, 6] and verify(whole).ok
    began = []
    for i in range(len(source)):
        distance, number = nearest(source[i]["image"], photographs[NAMES[source.labels[i]]])
        assert distance < 8, (i, distance)  # of 255; to any other image it is more than 20
        began.append(number)
    # Draws of the seed and the number that never change; the second copy has its own.
    assert began == [3, 2, 1, 1, 1, 0, 2, 1, 3, 1, 2, 0, 0, 2]
    recorded = files.read_sealed(whole / "manifest.json")["provenance"]
    assert recorded["config"]["start"] == dict(name="image_folder", path=str(work / "real"))
    assert recorded["config"]["skip_steps"] == SKIPPED and len(recorded["start"]) == 64


def test_the_same_set_by_two_workers_and_after_a_loss(work, whole, capsys):
    again = work / "again"
    for number in (1, 0):
        flags = [f"--worker={number}", "--num_workers=2"]
        assert not commands.run(generate.main, work / "config.py", again, *begin(work), *flags)
    assert contents(again) == contents(whole)
    sorted(again.glob("*.tfrecord-*"))[1].unlink()
    (again / "manifest.json").unlink()
    assert not commands.run(generate.main, work / "config.py", again, *begin(work))
    assert contents(again) == contents(whole)
    capsys.readouterr()
    other = begin(work, SKIPPED - 1)
    assert commands.run(generate.main, work / "config.py", again, *other) == 2
    assert "skip_steps = 62 (now 61)" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_of_prompts(work, monkeypatch):
    shown = []
    show = sample.show
    monkeypatch.setattr(sample, "show", lambda images, *args: shown.append(images) or show(images))
    flags = [*begin(work), "--prompt=de", "--prompt=ab", "--path=2"]
    assert not commands.run(sample.main, work / "config.py", work / "samples", *flags)
    ((began, drawn),) = shown
    photographs, settings = real(work), json.loads((work / "samples/samples.json").read_text())
    for i, name in enumerate(("de", "de", "ab", "ab")):
        distance, number = nearest(drawn[i], photographs[name])
        assert distance < 8 and nearest(began[i], photographs[name]) == (0, number)
        assert settings["started_from"][i] == f"{name}/{number}.png"
    assert (work / "samples/path.png").stat().st_size > 1000


def of_class(starts, label, indices):
    names = ["x", "y"]
    labels = np.full(len(indices), label)
    return starts.of_classes(names, labels, np.asarray(indices), seed=1).positions


def test_what_is_drawn_of_the_real_images():
    images = np.zeros((50, 8, 8, 3), np.uint8)
    source = ArraySource(images, np.arange(50) % 2, ["y", "x"])
    drawn = Starts(source, 8, 3, ())
    few, many = of_class(drawn, 0, [9, 7]), of_class(drawn, 0, range(1000))
    assert few.tolist() == many[[9, 7]].tolist()  # of the seed and the number alone
    counts = np.bincount(many, minlength=50)
    assert counts[::2].sum() == 0 and counts[1::2].min() > 20 and counts[1::2].max() < 65
    # Any text: a class where it names one, the next image where it does not.
    positions = drawn.of_prompts(["a cat", "x", "a cat", "y"], seed=1).positions
    assert positions[[0, 2]].tolist() == [0, 2]
    assert positions[[1, 3]].tolist() == [many[1], of_class(drawn, 1, [3])[0]]
    with pytest.raises(InputError, match="got none of 'z'; add some, or leave the class out"):
        dataclasses.replace(drawn, closed=(("x",), ("z",))).of_prompts(["x", "z"], seed=1)
    with pytest.raises(InputError, match="5 must have 1 channels, as the base draws, got 3"):
        Starts(source, 8, 1, ()).of_prompts(["a cat"] * 6, seed=1)[5:6]


def test_imagenet_is_known_by_words_and_ids():
    ids = ArraySource(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), ["n01440764", "n02134084"])
    by_ids = Starts(ids, 8, 3, starts._called("imagenet"))
    assert by_ids.of_prompts(["polar bear", "tench"], seed=0).positions.tolist() == [1, 0]
    by_ids.check_classes(["n01440764", "goldfish"], [1, 0])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["skip_steps=3"], "config.skip_steps must be 0 if images start from noise, got 3"),
        (["skip_steps=-1"], "config.skip_steps must be a whole number of steps, got -1"),
        (["start.name=digits", "start.split=pool"], "at least 1 and less than the 64 steps"),
        (["start.name=digits", "skip_steps=64"], "at least 1 and less than the 64 steps"),
        (
            ["start.path=a", "skip_steps=3"],
            "--config.start.name must be set as well, got only --config.start.path",
        ),
    ],
)
@pytest.mark.parametrize("task", [generate, sample])
def test_what_does_not_go_together(work, capsys, task, fields, said):
    flags = [f"--config.{field}" for field in fields]
    assert commands.run(task.main, work / "config.py", None, *flags, "--dry_run") == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_images_that_are_not_there(work, capsys):
    (work / "counts.json").write_text(json.dumps(COUNTS | {"c": 1}))
    folder = work / "none"
    for flags, said in (
        (
            begin(work),
            "config.start must have images of every class that is sampled, got none of 'c'",
        ),
        ([*begin(work), "--config.start.path=gone"], "config.start: gone"),
        ([*begin(work), "--config.start.name=parquet"], "config.start: "),
    ):
        assert commands.run(generate.main, work / "config.py", folder, *flags) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err
    assert not folder.exists()


def test_what_is_measured_begins_with_noise():
    spec = dict(cascade=config(), num_images=4)
    check_sampled("config.sets.a", ConfigDict(spec))
    spec["cascade"].skip_steps = 2
    with pytest.raises(InputError, match=r"config.sets.a: cascade.skip_steps must be left out"):
        check_sampled("config.sets.a", ConfigDict(spec))
