"""imagen_ft.evaluate on images that a cascade draws on the way."""

import json

import ml_collections
import numpy as np
import pytest
from etils import epath

from imagen_ft import evaluate
from imagen_ft.cascade import Request
from imagen_ft.evaluation import sampled
from imagen_ft.evaluation.drawn import Drawn
from imagen_ft.evaluation.image_sets import npz_samples
from input_pipeline.augment.resize import resize
from input_pipeline.sources.digits import digits
from launch.errors import InputError
from tests.classifiers.evaluation import tiny
from tests.support import small_cascade
from tests.support.commands import run

# Batches of 8 and parts of 16, the last one smaller.
NUM_IMAGES, BATCH = 44, 8
CONFIG = """
from configs.digits import evaluate_images
from tests.support import small_cascade

def get_config():
    config = evaluate_images.get_config("runlocal,synthetic=,extractor={folder}/run")
    del config.sets.validation
    cascade = small_cascade.config()
    cascade.class_names, cascade.batch_size = tuple("0123456789"), {batch}
    for entry in cascade.stages.values():
        entry.run = "nowhere"
    sets = dict(whole=dict(cascade=cascade, num_images={count}, labels="balanced", write=""))
    enlarging = cascade.copy_and_resolve_references()
    del enlarging.stages.base4
    low = dict(source=dict(name="digits", split="pool"))
    sets["enlarged"] = dict(
        cascade=enlarging, num_images=30, labels="real", seed=3, low=low, write=""
    )
    config.sets = sets
    config.measures = ("sliced", "classes_apart", "copying")
    config.sliced.num_directions, config.num_worst = 20, 2
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    tiny.write_run(folder / "run", tiny.variables, model=tiny.FIELDS)
    text = CONFIG.format(folder=folder, batch=BATCH, count=NUM_IMAGES)
    (folder / "config.py").write_text(text)
    return folder


@pytest.fixture(scope="module", autouse=True)
def loading():
    """Stages with seeded weights in the place of runs."""

    whole = small_cascade.make_cascade()

    def load(config, mesh, base):
        names = list(config.stages)
        rows = [["base4", "sr8"].index(name) for name in names]
        parts = [[values[row] for row in rows] for values in (whole.stages, whole.variables)]
        return type(whole)(
            *map(tuple, parts),
            whole.encoder,
            tuple("0123456789"),
            tuple(names),
            config,
            config.batch_size,
            mesh,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "load_cascade", load)
        patch.setattr("imagen_ft.evaluation.drawn._BATCHES", 2)
        yield


class Cut(Exception):
    pass


@pytest.mark.slow
def test_drawing_goes_on_where_it_stopped_and_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    counted, whole = [], Drawn._draw_parts

    def cut(self, parts, tell):
        counted.append(len(parts))
        for number, part in enumerate(whole(self, parts, tell)):
            if number == 1 and len(counted) == 1:
                raise Cut
            yield part

    monkeypatch.setattr(Drawn, "_draw_parts", cut)
    workdir, config = tmp_path / "x", folder / "config.py"
    written = f"--config.sets.whole.write={tmp_path}/samples.npz"
    with pytest.raises(Cut):
        try:
            run(evaluate.main, config, workdir, written)
        except pytest.fail.Exception:  # What is raised is no exit.
            raise Cut from None
    assert run(evaluate.main, config, workdir, written) == 0
    # Of the two parts of the first set one is there.
    assert counted == [2, 1, 3]
    assert not list(workdir.rglob("part-*")) and len(list(workdir.rglob("shown.npz"))) == 2
    samples = npz_samples(tmp_path / "samples.npz")
    labels = np.arange(NUM_IMAGES) % 10
    load = sampled.load_cascade
    base = load(config_of(folder).sets.whole.cascade, None, True)
    expected = list(base.stream(Request(labels=labels, seed=0)))
    np.testing.assert_array_equal(samples.images, np.concatenate([b for [b] in expected]))
    np.testing.assert_array_equal(samples.labels, labels)
    page = (workdir / "report.html").read_bytes()
    # Neither images nor cascades are needed for what is known.
    assert run(evaluate.main, config, workdir, written) == 0
    assert len(counted) == 3 and (workdir / "report.html").read_bytes() == page
    # Of the features: images are drawn no more for another number of directions.
    assert run(evaluate.main, config, workdir, "--config.sliced.num_directions=30") == 0
    assert len(counted) == 3
    results = json.loads((workdir / "evaluation.json").read_text())["sets"]["whole"]["results"]
    assert {r["conditions"]["file_format"] for r in results} == {"none"}
    assert {r["conditions"]["class_balance"] for r in results} == {"drawn"}
    assert {r["conditions"]["num_images"] for r in results} == {NUM_IMAGES}
    other = f"--config.sets.enlarged.write={tmp_path}/samples.npz"
    assert run(evaluate.main, config, workdir, other) == 2


def config_of(folder):
    space = {}
    exec((folder / "config.py").read_text(), space)
    return space["get_config"]()


def open_one(folder, tmp_path, name, **fields):
    spec = config_of(folder).sets[name]
    spec.update(fields)
    real = digits("pool")
    return sampled.open_sampled(name, spec, sampled.OneLoaded(), real, epath.Path(tmp_path))


def test_one_stage_enlarges_shrunk_images(folder, tmp_path):
    drawn = open_one(folder, tmp_path, "enlarged").drawn
    drawn.draw()
    pool, low = digits("pool"), drawn._plan.low
    picked = [int(low.key(i).partition(":")[2]) for i in range(len(low))]
    np.testing.assert_array_equal(drawn.labels, pool.labels[picked])
    small = np.stack([resize(pool.images[i], 4) for i in picked])
    load = sampled.load_cascade
    cascade = load(config_of(folder).sets.enlarged.cascade, None, False)
    request = Request(labels=drawn.labels, seed=3, low=small)
    expected = np.concatenate([batch for [batch] in cascade.stream(request)])
    np.testing.assert_array_equal([drawn[i]["image"] for i in range(30)], expected)


def test_what_decides_about_the_images(folder, tmp_path):
    one = lambda name, **fields: open_one(folder, tmp_path, name, **fields).digest()  # noqa: E731
    same = {one("whole"), one("whole", write=str(tmp_path / "x.npz"))}
    cascade = config_of(folder).sets.whole.cascade
    cascade.stages.sr8.guidance_weight = 2.0
    others = {
        one("whole", num_images=45),
        one("whole", labels="real"),
        one("whole", seed=1),
        one("whole", square=4),
        one("whole", cascade=cascade),
        one("enlarged"),
        one("enlarged", labels="balanced"),
        one("enlarged", seed=4),
    }
    assert len(same) == 1 and len(others) == 8 and not same & others


WRONG = {
    "no low": ("enlarged", dict(low=None), "low must be set if the first stage enlarges"),
    "low": ("whole", dict(low=dict(source=dict(name="digits", split="pool"))), "leave the base"),
    "labels": ("whole", dict(labels="all"), "labels must be 'balanced'"),
    "count": ("whole", dict(num_images=0), "num_images"),
    "few": ("enlarged", dict(num_images=1001), "at most the 1000 images of low"),
    "square": ("whole", dict(square=9), "square must be from 1 to the 8 px"),
    "cascade": ("whole", dict(cascade="x.py"), "cascade must be a dict, a config as for imagen_ft"),
    "field": ("whole", dict(source=3), "has no field 'source'"),
    "lacking": ("whole", dict(cascade=ml_collections.ConfigDict(dict(batch_size=8))), "is missing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_fields(folder, tmp_path, name):
    which, fields, said = WRONG[name]
    spec = config_of(folder).sets[which].to_dict() | fields
    spec["cascade"] = fields.get("cascade", config_of(folder).sets[which].cascade)
    load = sampled.OneLoaded()
    with pytest.raises(InputError) as told:
        sampled.open_sampled(which, spec, load, digits("pool"), epath.Path(tmp_path))
    assert said in str(told.value) and f"config.sets.{which}" in str(told.value)
