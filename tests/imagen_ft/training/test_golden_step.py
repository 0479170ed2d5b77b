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
    "loss": [3.5440247, 3.1979897, 3.0383816],
    "gradient_norm": [4.0061803, 3.6732948, 2.3337893],
    "update_norm": [0.019718541, 0.13170478, 0.11241741],
    "learning_rate": [0.010000002, 0.050000001, 0.037500001],
    "trained params/encoder_hid_proj/kernel": [-0.0135408, 0.033567853, 0.029753309, 0.35566196],
    "trained params/conv_in/kernel": [-0.031396452, 0.010673505, 0.2393629, 0.57312423],
    "trained params/mid_block_attentions_0/to_v/kernel": [
        0.27567294,
        0.38520509,
        -0.043229423,
        -0.48289907,
        0.85801715,
    ],
    "trained params/conv_out/kernel": [0.17266014, 0.074927099, -0.30905181, 0.30905181],
    "main params/encoder_hid_proj/kernel": [-0.013316651, 0.033486091, 0.030258575, 0.35652035],
    "main params/conv_in/kernel": [-0.028425163, 0.0041629281, 0.23753871, 0.57797545],
    "main params/mid_block_attentions_0/to_v/kernel": [
        0.27656254,
        0.38482267,
        -0.04359512,
        -0.48387647,
        0.85965753,
    ],
    "main params/conv_out/kernel": [0.19119528, 0.074866235, -0.31355384, 0.31355384],
    "slow params/encoder_hid_proj/kernel": [-0.013514197, 0.033551712, 0.029822269, 0.35579342],
    "slow params/conv_in/kernel": [-0.030752722, 0.0096635763, 0.23897211, 0.57416528],
    "slow params/mid_block_attentions_0/to_v/kernel": [
        0.27579987,
        0.38517091,
        -0.04328585,
        -0.48305649,
        0.85826653,
    ],
    "slow params/conv_out/kernel": [0.17527558, 0.074921802, -0.31034318, 0.31034318],
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
