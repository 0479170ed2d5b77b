"""What a stage draws is measured while it is trained."""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from classifiers.extractors.classifier import classifier
from imagen_ft.diffusion.stage import Stage
from imagen_ft.metrics.sliced_distance import sliced_distance
from imagen_ft.training import curves
from imagen_ft.training.image_losses import shrink
from imagen_ft.training.images import open_images
from imagen_ft.training.sampled_metric import SampledMetric, check_metric, metric_name
from imagen_ft.training.training import Training
from input_pipeline.sources.digits import digits
from launch.errors import InputError
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.images import to_float
from launch.runtime.state import TrainState
from tests.classifiers.evaluation import tiny
from tests.imagen_ft import tiny_training

SLICED = dict(num_directions=20, seed=2020)
SAMPLING = tiny_training.get_config().pictures.to_dict()


def config(run="nowhere", **changes):
    found = tiny_training.get_config()
    fields = dict(
        measure="sliced",
        every=5,
        num_images=20,
        batch_size=8,
        extractor=dict(name="classifier", path=str(run)),
        sampling=found.pictures,
        sliced=SLICED,
    )
    found.evaluation_metric = ConfigDict(fields | changes)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.write_run(
        tmp_path_factory.mktemp("extractor") / "run", tiny.variables, model=tiny.FIELDS
    )


def metric_of(run, workdir, **changes):
    training = Training.of(config(run, **changes))
    images, mesh = open_images(training), make_mesh({}, jax.devices()[:1])
    text = np.zeros((10, *training.text_shape), np.float32)
    source = images.evaluation
    workdir = epath.Path(workdir)
    network = training.network_on(mesh, None)
    texts = text, text[0]
    return SampledMetric(training.config, mesh, workdir, images.prompts, source, *texts, network)


@pytest.mark.slow
def test_it_is_that_of_the_images_that_the_weights_draw(run, tmp_path, monkeypatch):
    """Super-resolution that draws its low-resolution image with larger pixels, and one pixel off.

    The images are real ones, as many of each class; none is of another size than training's.
    """
    seen = []

    def enlarge(self, variables, keys, text, null_text, low=None, **options):
        large = jnp.repeat(jnp.repeat(low, 2, axis=1), 2, axis=2)
        return large.at[:, 0, 0].set(variables["params"]["shade"])

    monkeypatch.setattr(Stage, "sample", enlarge)
    metric = metric_of(run, tmp_path)
    metric.open()
    shade = np.float32(0.25)
    state = mock.Mock(TrainState, step=5, inference_variables={"params": {"shade": shade}})
    values = metric(state)

    validation = digits("validation")
    rank = {}
    order = np.random.default_rng(0).permutation(len(validation.labels))
    for i in order:  # two of each class, in the order of their drawing
        rank.setdefault(int(validation.labels[i]), []).append(int(i))
    for positions in rank.values():
        seen += positions[:2]
    low = np.asarray(shrink(to_float(jnp.asarray(validation.images[seen])), 4))
    low = np.round(low * 127.5 + 127.5) / 127.5 - 1
    large = low.repeat(2, axis=1).repeat(2, axis=2)
    large[:, 0, 0] = shade
    images = np.round(large * 127.5 + 127.5).astype(np.uint8)
    extractor = classifier(str(run))
    ours, theirs = (
        np.asarray(extractor.apply(extractor.variables, pixels)["features"])
        for pixels in (images, validation.images)
    )
    assert list(values) == ["sampled_mind"]
    assert values["sampled_mind"] == pytest.approx(
        sliced_distance(ours, theirs, **SLICED), rel=0.02
    )
    # The same weights draw the same, other ones something else.
    assert metric(state) == values
    state.inference_variables = {"params": {"shade": np.float32(-1.0)}}
    assert metric(state) != values


@pytest.mark.slow
def test_images_that_are_not_finite_are_said_and_training_goes_on(run, tmp_path, monkeypatch):
    def nan(self, variables, keys, text, null_text, low=None, **options):
        return jnp.full((len(low), 8, 8, 1), jnp.nan)

    monkeypatch.setattr(Stage, "sample", nan)
    state = mock.Mock(TrainState, step=5, inference_variables={"params": {}})
    with pytest.warns(UserWarning, match="no sampled_mind of step 5: .* NaN"):
        assert np.isnan(metric_of(run, tmp_path)(state)["sampled_mind"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(measure="frechet", num_images=4), "evaluation_metric: the number of images must be"),
        (
            dict(measure="kernel", kernel=dict(subsets=2, subset_size=90, seed=0)),
            "evaluation_metric: .*subset_size",
        ),
        (dict(num_images=1000), r"num_images must be at most the 100 images of low, got 1000"),
    ],
)
def test_too_few_images_are_said_before_training(run, tmp_path, changes, said):
    metric = metric_of(run, tmp_path, **changes)
    with pytest.raises(InputError, match=said):
        metric.open()
        metric.prepare()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(measure="fid"), r"measure must be one of frechet, .*, got 'fid'"),
        (dict(measure="relative"), r"evaluation_metric.reference.held_out must be a set of real"),
        (dict(num_images=0), r"evaluation_metric.num_images"),
        (dict(extractor=dict(name="resnet")), r"evaluation_metric.extractor.name must be one of"),
        (
            dict(measure="spatial_frechet"),
            r"'spatial_frechet' needs Inception, got extractor",
        ),
        (dict(measure="kernel"), r"evaluation_metric needs the arguments of 'kernel' in a field"),
        (
            dict(sampling=SAMPLING | dict(guidance_weight=-1.0)),
            r"_metric: guidance_weight must be .*-1",
        ),
    ],
)
def test_wrong_fields(changes, said):
    with pytest.raises(InputError, match=said):
        check_metric(config(**changes))


@pytest.mark.slow
def test_a_field_that_is_missing_and_one_that_is_off():
    missing = config()
    del missing.evaluation_metric["sampling"]
    with pytest.raises(InputError, match=r"config\.evaluation_metric needs the field 'sampling'"):
        check_metric(missing)
    missing.evaluation_metric.every = 0
    check_metric(missing)


@pytest.mark.slow
def test_its_name_says_fid_on_inception_alone():
    spec = dict(measure="frechet", extractor=dict(name="inception"))
    assert metric_name(spec) == "sampled_fid"
    spec["extractor"] = dict(name="classifier", path="x")
    assert metric_name(spec) == "sampled_fd"


@pytest.mark.slow
def test_the_best_checkpoint_can_be_chosen_by_it():
    found = config()
    found.best = dict(metric="sampled_mind", mode="min")
    Training.of(found).check(make_mesh({}, jax.devices()[:1]))
    found.evaluation_metric.every = 0
    with pytest.raises(InputError, match=r"config\.best\.metric must be .*got 'sampled_mind'"):
        Training.of(found).check(make_mesh({}, jax.devices()[:1]))


@pytest.mark.slow
def test_curves(tmp_path):
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "validation_loss": 0.4, "sampled_fd": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves.write(epath.Path(tmp_path), "sampled_fd")
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
