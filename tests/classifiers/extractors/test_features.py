import jax
import jax.numpy as jnp
import numpy as np
import pytest

from classifiers.evaluation.label_maps import wordnet_ids
from classifiers.extractors import features as features_file
from classifiers.extractors.classifier import classifier
from classifiers.extractors.extractor import Extractor
from classifiers.extractors.features import feature_batches, features, images_digest
from classifiers.models import presets
from classifiers.weights import save
from classifiers.weights.config_files import write_configs
from classifiers.weights.importing import import_run
from input_pipeline.source import ArraySource, Subset, Wrapper
from input_pipeline.sources.image_folder import ImageFolder
from launch.errors import InputError
from tests.support.classifier_weights import draw
from tests.support.devices import run_on_eight
from tests.support.real_images import lite0, photographs

NUM_IMAGES = 11


def source(size=8, channels=3, digest=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, size, size, channels), np.uint8)
    labels = np.arange(NUM_IMAGES) % 2
    return ArraySource(images, labels, ("a", "b"), digest=digest)


def means(variables, images):
    """The mean colour of the whole image and of its quarters."""
    x = images.astype(jnp.float32) * variables["params"]["gain"]
    b, h, w, c = x.shape
    return {
        "features": x.mean((1, 2)),
        "spatial": x.reshape(b, 2, h // 2, 2, w // 2, c).mean((2, 4)),
    }


def extractor(gain=1.0, rule="plain"):
    variables = {"params": {"gain": np.float32(gain)}}
    return Extractor("means", rule, f"digest of {gain}", means, variables)


class Darker(Wrapper):
    """What says nothing of what it does to images."""

    def __getitem__(self, i):
        example = self._source[i]
        return {**example, "image": example["image"] // 2}


@pytest.fixture
def calls(monkeypatch):
    """The taps of each computation."""
    taps, real = [], features_file.feature_batches

    def count(extractor, source, chosen, *args):
        taps.append(tuple(chosen))
        return real(extractor, source, chosen, *args)

    monkeypatch.setattr(features_file, "feature_batches", count)
    return taps


def test_features_are_computed_once(tmp_path, calls):
    images = source()
    first = features(extractor(), images, tmp_path, batch_size=4)
    expected = images.images.mean((1, 2), dtype=np.float64)
    np.testing.assert_allclose(first["features"], expected, rtol=1e-5)
    again = features(extractor(), images, tmp_path, ("spatial", "features"))
    np.testing.assert_array_equal(first["features"], again["features"])
    assert again["spatial"].shape == (NUM_IMAGES, 2, 2, 3)
    assert calls == [("features",), ("spatial",)]


OTHERS = {
    "weights": lambda: (extractor(2.0), source()),
    "rule": lambda: (extractor(rule="another"), source()),
    "images": lambda: (extractor(), Darker(source())),
    "images of a set with a digest": lambda: (extractor(), Darker(source(digest="d"))),
    "order": lambda: (extractor(), Subset(source(), np.arange(NUM_IMAGES)[::-1])),
    "digest": lambda: (extractor(), source(digest="e")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_is_computed_anew(tmp_path, calls, name):
    first = OTHERS[name]()
    known = source(digest="d") if "digest" in name else source()
    features(extractor(), known, tmp_path)
    features(*first, tmp_path)
    assert len(calls) == 2
    features(*first, tmp_path)
    assert len(calls) == 2


@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_a_damaged_file_is_made_anew(tmp_path, calls, suffix):
    first = features(extractor(), source(), tmp_path)
    (path,) = tmp_path.glob(f"*.{suffix}")
    path.write_bytes(path.read_bytes()[:-3])
    again = features(extractor(), source(), tmp_path)
    np.testing.assert_array_equal(first["features"], again["features"])
    assert len(calls) == 2


def test_batches_of_what_memory_does_not_hold():
    told = []
    batches = list(feature_batches(extractor(), source(), batch_size=4, tell=told.append))
    assert [len(batch["features"]) for batch in batches] == told == [4, 4, 3]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ((extractor(np.nan), source()), "features of means must be finite, got NaN"),
        ((extractor(), source(size=7)), "images must fit means, got 7x7x3"),
        ((extractor(), Subset(source(), np.arange(0))), "the set has no images"),
    ],
)
def test_wrong_input(tmp_path, case, message):
    with pytest.raises(InputError, match=message):
        features(*case, tmp_path / "kept", ("features", "spatial"))
    assert not (tmp_path / "kept").exists()


def test_unknown_taps(tmp_path):
    with pytest.raises(InputError, match="taps must be some of features, spatial, got 'logits'"):
        features(extractor(), source(), tmp_path, ("logits",))


MODELS = {
    "vit": (dict(width=16, depth=1, num_heads=2, patch_size=4), "timm", (2, 2, 16)),
    "resnet": (dict(stage_sizes=(1, 1), width=4), "torchvision", (1, 1, 32)),
    "efficientnet_lite": (dict(stage_sizes=(1, 1), width=8), "efficientnet", (2, 2, 320)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_classifier_of_ours(tmp_path, monkeypatch, name):
    """Its features are those that it gives itself, of images that it brings to its size itself."""
    fields, layout, spatial = MODELS[name]
    model = presets.make(name, 3, **fields)
    monkeypatch.setitem(presets.PRESETS, "small", presets.Preset(type(model), fields))
    variables = jax.tree.map(np.abs, draw(model, 8))  # no variance is negative
    (tmp_path / "weights").mkdir()
    save(tmp_path / "weights", variables, model, (8, 8, 3), layout)
    write_configs(tmp_path / "weights", model, (8, 8, 3), layout)
    import_run(str(tmp_path / "weights"), str(tmp_path / "run"), layout, "small", size=8)
    network = classifier(tmp_path / "run")
    assert network.rule == "as evaluated (crop_ratio 1.0, resize pil_bilinear, size 8)"
    taps = features(network, source(size=20), tmp_path, ("features", "spatial", "logits"))
    images = np.stack([network.transform(source(size=20)[i])["image"] for i in range(NUM_IMAGES)])
    assert images.shape[1:] == (8, 8, 3) and taps["spatial"].shape[1:] == spatial
    x = images / np.float32(127.5) - 1
    run = jax.jit(model.apply, static_argnames="features")
    expected = {"features": run(variables, x, features=True), "logits": run(variables, x)}
    for tap, values in expected.items():
        np.testing.assert_allclose(taps[tap], values, rtol=1e-4, atol=1e-4)


def test_other_runs(tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        classifier(tmp_path)


@pytest.mark.slow
def test_eight_devices_see_the_same():
    found = run_on_eight("tests.classifiers.extractors.features_devices")
    assert found["difference"] <= 1e-3


@pytest.mark.slow
def test_real_weights_know_real_photographs(tmp_path):
    folder = photographs("imagenet_sample", tmp_path)
    options = dict(model="efficientnet_lite0", pixels="efficientnet_lite")
    import_run(lite0(tmp_path), str(tmp_path / "run"), "efficientnet", **options)
    originals = ImageFolder(folder / "original")
    logits = features(classifier(tmp_path / "run"), originals, tmp_path, ("logits",), 8)["logits"]
    names = wordnet_ids()
    labels = [names.index(originals.class_names[label]) for label in originals.labels]
    assert len(labels) == 40 and (logits.argmax(1) == labels).sum() == 37


def test_a_digest_sees_every_pixel_of_a_set_without_one():
    changed = source()
    changed.images[5, 3, 2, 1] ^= 1
    assert images_digest(changed) != images_digest(source())
