"""That annotations are checked in the tests, by jaxtyping's import hook."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from classifiers.training import losses
from imagen_ft.diffusion import guidance
from input_pipeline.augment import resize
from launch.runtime import ema

IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: resize.square(IMAGE[0], 2),  # no image
        lambda: resize.square(IMAGE.astype(np.int32), 2),  # another dtype
        lambda: resize.square(IMAGE, "2"),
        lambda: guidance.threshold(jnp.zeros((4, 4, 3)), 100.0),
        lambda: losses.soft_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 4))),  # 3 is not 4
        lambda: ema.make_decays(None),
    ],
)
def test_wrong_shapes_and_types_are_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_an_int_is_a_float():
    assert guidance.threshold(jnp.ones((1, 2, 2, 3)), 100).shape == (1, 2, 2, 3)
