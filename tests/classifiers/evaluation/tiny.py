"""Networks that read the answer from the image, runs of them, and sets of such images."""

import zipfile

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from classifiers import from_config
from classifiers.models.resnet import ResNet
from tests.support import written_runs

FIELDS = dict(name="resnet", stage_sizes=(1,), width=4, small_stem=True, dtype="float32")


class Oracle(ResNet):
    """Finds the class that is written into the first pixel; `shift` is added to its number.

    What has the second-best output is `second` further.
    """

    def init(self, key, images):
        variables = {"shift": jnp.zeros((), jnp.int32), "second": jnp.ones((), jnp.int32)}
        return {"params": {"head": {"bias": jnp.zeros(self.num_classes)}, **variables}}

    def apply(self, variables, images):
        levels = jnp.round(images[:, 0, 0] * 127.5 + 127.5).astype(jnp.int32)
        params = variables["params"]
        first = levels[:, 0] * 250 + levels[:, 1] + params["shift"]
        best, next_best = (
            jnp.eye(self.num_classes)[number % self.num_classes]
            for number in (first, first + params["second"])
        )
        return 40 * best + 30 * next_best


def model():
    return from_config.make_model(ConfigDict(FIELDS), 10)


def variables(seed):
    """Of no trained network, but one that says other things of other images."""
    found = jax.jit(lambda key: from_config.init_model(model(), key, (8, 8, 1)))(
        jax.random.key(seed)
    )
    head = found["params"]["head"]
    kernel = 3 * np.random.default_rng(seed).normal(size=head["kernel"].shape)
    head = {**head, "kernel": kernel.astype(np.float32)}
    return {**found, "params": {**found["params"], "head": head}}


def png(label, size=4, border=0):
    """An image that says its class; RGB."""
    image = np.zeros((size, size, 3), np.uint8)
    image[:] = label // 250, label % 250, 7
    if border:
        framed = np.zeros((size + 2 * border, size + 2 * border, 3), np.uint8)
        framed[:, :, 0] = 255
        framed[border:-border, border:-border] = image
        image = framed
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def write_zip(path, images):
    """Images by `class/file`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in images.items():
            archive.writestr(name, data)
    return str(path)


def write_run(folder, variables, seeds=1, **config):
    """A finished run whose checkpoints hold these variables, or those of a function of the seed."""
    config = {"model": {"name": "resnet"}, "seeds": seeds, "total_steps": 0, **config}
    of_seeds = (variables(seed) if callable(variables) else variables for seed in range(seeds))
    written_runs.write_run(folder, config, *of_seeds)
    return folder


CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        runs=(), checkpoint=dict(best=False, ema="main"), baseline="real", batch_size=7,
        calibration_bins=15, **{fields!r}
    ))
"""


def write_config(path, sets, attacks=None, shots=None):
    fields = dict(sets=sets, attacks=attacks or {}, shots=shots or {})
    path.write_text(CONFIG.format(fields=fields))
    return path
