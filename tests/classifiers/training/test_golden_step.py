"""Three steps of a classifier, with much switched on, give the numbers that they always gave."""

import jax
import numpy as np

from classifiers.training import warm_start
from classifiers.training.training import Training
from launch.runtime.devices.mesh import make_mesh
from tests.classifiers import tiny_training
from tests.support import golden

ROWS = 12
PATHS = (
    "params/stem_conv/kernel",
    "params/stage_1_block_0/conv_1/kernel",
    "params/head/kernel",
    "batch_stats/stem_norm/var",
    "batch_stats/stage_1_block_0/norm_1/var",
)
GOLDEN = {
    "loss": [1.6115087, 1.8598695, 1.6118305],
    "gradient_norm": [0.33682457, 0.43318847, 0.45061594],
    "update_norm": [0.011332992, 0.078841873, 0.074256286],
    "learning_rate": [0.010000002, 0.050000001, 0.037500001],
    "trained params/stem_conv/kernel": [0.29733434, -0.0061174212, 0.42056504, 0.42056504],
    "trained params/stage_1_block_0/conv_1/kernel": [
        -0.020663444,
        -0.052930981,
        -0.0074979691,
        0.48266619,
    ],
    "trained params/head/kernel": [0.11493374, -0.10071991, 0.064589888, -0.018610517, 0.11673869],
    "trained batch_stats/stem_norm/var": [0.73655844, 0.75645971, 0.75099581, 0.75645971],
    "trained batch_stats/stage_1_block_0/norm_1/var": [
        0.97360778,
        0.93175614,
        1.0173209,
        0.9572041,
        1.0558693,
    ],
    "main params/stem_conv/kernel": [0.30114543, -0.006326104, 0.42568642, 0.42568642],
    "main params/stage_1_block_0/conv_1/kernel": [
        -0.020899732,
        -0.053581603,
        -0.0075896955,
        0.48852378,
    ],
    "main params/head/kernel": [0.12040422, -0.10043684, 0.064713053, -0.017480033, 0.12040422],
    "main batch_stats/stem_norm/var": [0.94927055, 0.95338506, 0.95229155, 0.95338506],
    "main batch_stats/stage_1_block_0/norm_1/var": [
        0.99448216,
        0.98663217,
        1.0037947,
        0.992342,
        1.0115469,
    ],
}


def config_of():
    """In three steps the rate rises and falls; images of two domains are mixed, each with its own.

    The rest is `tiny_training`'s: momentum, decay of weights, dropout.
    """
    config = tiny_training.get_config()
    config.train_sources = dict(real={}, synthetic={})
    config.synthetic_loss_weight, config.label_smoothing = 0.6, 0.1
    config.mix = dict(mixup=0.8, cutmix=1.0, by_domain=True)
    config.total_steps, config.optimizer.warmup_steps = 4, 1
    config.optimizer.learning_rate, config.optimizer.warmup_from = 0.05, 0.01
    config.optimizer.clip_norm = 0.2
    config.ema = dict(main=dict(decay=0.9, schedule="constant"))
    config.mesh = dict(data=1, fsdp=1, tensor=1)
    return config


def batches():
    for k in range(3):
        rng = np.random.default_rng(k)
        image = rng.integers(0, 256, (ROWS, 8, 8, 1)).astype(np.uint8)
        label, domain = rng.integers(0, 10, ROWS), rng.integers(0, 2, ROWS)
        yield dict(image=image, label=label.astype(np.int32), domain=domain.astype(np.int32))


def measure():
    config = config_of()
    training, mesh = Training.of(config, 10, (8, 8, 1)), make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        state = warm_start.create(training, mesh, seed=0)
        step = training.step(mesh)
        return golden.rows(*golden.take_steps(step, state, batches()), PATHS)


def test_three_steps():
    golden.assert_golden(measure(), GOLDEN)
