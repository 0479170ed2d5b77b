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
    "loss": [1.61150873, 1.85986948, 1.61183047],
    "gradient_norm": [0.336824566, 0.433188468, 0.450615942],
    "update_norm": [0.0113329925, 0.0788418725, 0.074256286],
    "learning_rate": [0.0100000016, 0.0500000007, 0.0375000015],
    "trained params/stem_conv/kernel": [0.297334343, -0.0061174212, 0.420565039],
    "trained params/stage_1_block_0/conv_1/kernel": [-0.020663444, -0.0529309809, -0.00749796908],
    "trained params/head/kernel": [0.114933737, -0.100719914, 0.0645898879, -0.0186105166],
    "trained batch_stats/stem_norm/var": [0.736558437, 0.756459713, 0.750995815],
    "trained batch_stats/stage_1_block_0/norm_1/var": [
        0.973607779,
        0.931756139,
        1.01732087,
        0.957204103,
    ],
    "main params/stem_conv/kernel": [0.301145434, -0.00632610405, 0.425686419],
    "main params/stage_1_block_0/conv_1/kernel": [-0.0208997317, -0.0535816029, -0.00758969551],
    "main params/head/kernel": [0.120404221, -0.100436844, 0.0647130534, -0.0174800325],
    "main batch_stats/stem_norm/var": [0.949270546, 0.953385055, 0.952291548],
    "main batch_stats/stage_1_block_0/norm_1/var": [
        0.99448216,
        0.986632168,
        1.00379467,
        0.992341995,
    ],
}


def config_of():
    """In three steps the rate rises and falls; images of two domains are mixed, each with its own.

    The rest is `tiny_training`'s: momentum, decay of weights, dropout.
    """
    config = tiny_training.get_config()
    config.train_sources = dict(real={}, generated={})
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
