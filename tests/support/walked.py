"""Uses what the walks of CONTRIBUTING.md have added; run it at the root of a copy that has them."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from classifiers.models import presets as classifier_presets
from imagen_ft.diffusion.from_config import make_denoiser
from imagen_ft.diffusion.sampler_from_config import make_sampler
from imagen_ft.evaluation.measures import Images, Measures, Real
from imagen_ft.evaluation.seeing import check_measures
from imagen_ft.metrics.frechet import Labelled
from imagen_ft.metrics.result import Conditions
from imagen_ft.metrics.statistics import of_features
from imagen_ft.models import presets
from input_pipeline import sources
from launch.runtime.config import load_config


def a_network() -> None:
    stage = dict(size=8, low_size=0, channels=3, schedule="cosine")
    denoiser = make_denoiser(ConfigDict(dict(stage, unet=dict(preset="two_layers"))))
    text = jnp.zeros((2, 5, presets.TINY_T5_WIDTH))
    inputs = (jnp.zeros((2, 8, 8, 3)), jnp.zeros(2), text)
    shapes = jax.eval_shape(denoiser.model.init, jax.random.key(0), *inputs)
    output = jax.eval_shape(denoiser.model.apply, shapes, *inputs)
    assert output.shape == (2, 8, 8, 3)
    assert presets.parameter_shapes("two_layers")["conv_in"]["kernel"].shape == (3, 3, 3, 32)


def a_sampler() -> None:
    sampler = make_sampler(ConfigDict(dict(name="half_noise", num_steps=4, eta=0.0)))
    ddpm = make_sampler(ConfigDict(dict(name="ddpm", num_steps=4, logvar_coeff=0.0)))
    x, noise = jnp.ones((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))
    logsnr = jnp.zeros(()), jnp.ones(())
    prediction = type("Prediction", (), {"x0": 0.5 * x, "logvar_coeff": None})
    steps = [s.update(x, prediction, z, *logsnr) for s, z in ((sampler, noise), (ddpm, 0 * noise))]
    np.testing.assert_allclose(*steps, rtol=1e-6)


def a_measure() -> None:
    check_measures("config.measures", ("energy",), "inception")
    rng = np.random.default_rng(0)
    sets = [Labelled(rng.normal(size=(n, 3)), np.zeros(n, np.int32)) for n in (20, 30)]
    common = Conditions("x", "x", "x", "x", "x", None, 20, "drawn", None)
    real = Real(of_features(sets[1].features), None, sets[1], None, "a", "b", None, "png", "png")
    config = ConfigDict(dict(measures=("energy",), num_worst=0))
    (result,) = Measures(config, Images(sets[0]), real, common).take("", lambda name: None).results
    apart = lambda a, b: np.linalg.norm(a[:, None] - b, axis=-1).mean()  # noqa: E731
    ours, theirs = (labelled.features for labelled in sets)
    expected = 2 * apart(ours, theirs) - apart(ours, ours) - apart(theirs, theirs)
    np.testing.assert_allclose(result.value, expected, rtol=1e-9)


def a_classifier() -> None:
    model = classifier_presets.make("one_block_128", 5)
    shapes = classifier_presets.variable_shapes(model, (8, 8, 3))["params"]
    assert shapes["conv"]["kernel"].shape == (3, 3, 3, 128)
    assert shapes["head"]["kernel"].shape == (128, 5)


def a_data_source() -> None:
    source = sources.load(dict(name="stripes", images=10, per_class=3))
    assert len(source) == 6 and source.class_names == ("horizontal", "vertical")
    image = source[0]["image"]
    assert (image[0] == image[0, 0]).all() and not (image[:, 0] == image[0, 0]).all()


def a_config() -> None:
    config = load_config("configs/digits/classifier_wide.py:arm=pool,runlocal")
    assert config.model.width == 32 and config.total_steps == 10


WALKS = (a_network, a_sampler, a_measure, a_classifier, a_data_source, a_config)

if __name__ == "__main__":
    for walk in WALKS:
        walk()
        print(walk.__name__.replace("_", " "))
