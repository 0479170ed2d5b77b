from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from imagen_ft.diffusion.stage import Stage
from imagen_ft.training.images import open_images
from imagen_ft.training.pictures import make_pictures
from imagen_ft.training.training import Training
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.state import TrainState
from tests.imagen_ft import tiny_training


def test_a_picture_that_is_not_finite_is_said(monkeypatch, capsys):
    """Training goes on: its own losses tell whether it has diverged."""
    images = np.zeros((2, 8, 8, 1), np.float32)
    images[1, 3, 3, 0] = np.nan
    monkeypatch.setattr(Stage, "sample", lambda *_: jnp.asarray(images))
    training = Training.of(tiny_training.get_config())
    opened, mesh = open_images(training), make_mesh({}, jax.devices()[:1])
    text = np.zeros((len(opened.prompts), 2, 8), np.float32)
    draw = make_pictures(training, opened, mesh, text, text[0], training.network_on(mesh, None))
    state = mock.Mock(TrainState, step=7, inference_variables={})
    titles = [axis.get_title() for axis in draw(state).axes]
    line = "warning: pictures of step 7: 1 of 2 have NaN or infinity, the first is '"
    assert capsys.readouterr().err.startswith(line)
    assert [title.startswith("not finite") for title in titles] == [False] * 3 + [True] + [
        False
    ] * 2
