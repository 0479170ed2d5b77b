"""Three steps of a stage, with much switched on, give the numbers that they always gave."""

import jax
import numpy as np

from imagen_ft.training import warm_start
from imagen_ft.training.training import Training
from launch.runtime.devices.mesh import make_mesh
from tests.imagen_ft import tiny_training
from tests.support import golden

ROWS = 8
PATHS = (
    "params/encoder_hid_proj/kernel",
    "params/conv_in/kernel",
    "params/mid_block_attentions_0/to_v/kernel",
    "params/conv_out/kernel",
)
GOLDEN = {
    "loss": [3.54402471, 3.1979897, 3.03838158],
    "gradient_norm": [4.00618029, 3.67329478, 2.33378935],
    "update_norm": [0.0197185408, 0.131704777, 0.112417407],
    "learning_rate": [0.0100000016, 0.0500000007, 0.0375000015],
    "trained params/encoder_hid_proj/kernel": [-0.0135407997, 0.0335678533, 0.0297533087],
    "trained params/conv_in/kernel": [-0.0313964523, 0.0106735053, 0.239362895],
    "trained params/mid_block_attentions_0/to_v/kernel": [
        0.275672942,
        0.38520509,
        -0.0432294235,
        -0.48289907,
    ],
    "trained params/conv_out/kernel": [0.172660142, 0.074927099, -0.309051812],
    "main params/encoder_hid_proj/kernel": [-0.0133166509, 0.0334860906, 0.0302585755],
    "main params/conv_in/kernel": [-0.0284251627, 0.00416292809, 0.23753871],
    "main params/mid_block_attentions_0/to_v/kernel": [
        0.276562542,
        0.384822667,
        -0.0435951203,
        -0.483876467,
    ],
    "main params/conv_out/kernel": [0.191195279, 0.0748662353, -0.31355384],
    "slow params/encoder_hid_proj/kernel": [-0.0135141974, 0.0335517116, 0.0298222695],
    "slow params/conv_in/kernel": [-0.0307527222, 0.00966357626, 0.238972113],
    "slow params/mid_block_attentions_0/to_v/kernel": [
        0.27579987,
        0.385170907,
        -0.0432858504,
        -0.483056486,
    ],
    "slow params/conv_out/kernel": [0.175275579, 0.0749218017, -0.310343176],
}


def config_of():
    """In three steps the rate rises and falls; gradients are clipped and half of the text dropped.

    Adam would make of a gradient that is nearly zero a step of full size, in a random direction.
    """
    config = tiny_training.get_config()
    config.total_steps, config.text_drop = 4, 0.5
    config.ema = dict(main=dict(decay=0.9, schedule="constant"), slow=dict(decay=0.99))
    config.loss = dict(min_snr_gamma=5.0, vlb_weight=0.1)
    config.optimizer = dict(
        name="sgd",
        learning_rate=0.05,
        schedule="cosine",
        warmup_steps=1,
        warmup_from=0.01,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    config.mesh = dict(data=1, fsdp=1, tensor=1)
    return config


def batches(training):
    size = training.denoiser.size
    for k in range(3):
        rng = np.random.default_rng(k)
        image = rng.integers(0, 256, (ROWS, size, size, 1)).astype(np.uint8)
        yield dict(image=image, label=rng.integers(0, 10, ROWS).astype(np.int32))


def measure():
    config = config_of()
    training, mesh = Training.of(config), make_mesh(config.mesh)
    rng = np.random.default_rng(3)
    text = rng.normal(size=(10, *training.text_shape)).astype(np.float32)
    null = rng.normal(size=training.text_shape).astype(np.float32)
    with jax.set_mesh(mesh):
        state = warm_start.create(training, mesh)
        step = training.step(mesh, text, null)
        return golden.rows(*golden.take_steps(step, state, batches(training)), PATHS)


def test_three_steps():
    golden.assert_golden(measure(), GOLDEN)
