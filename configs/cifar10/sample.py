r"""Draws photographs of CIFAR-10's classes with the two stages that were trained before.

python -m imagen_ft.sample --config=configs/cifar10/sample.py --workdir=runs/cifar10/samples

Before it, the two runs:

    python -m imagen_ft.finetune --config=configs/cifar10/finetune_base16.py \
        --workdir=runs/cifar10/base16
    python -m imagen_ft.finetune --config=configs/cifar10/finetune_sr32.py \
        --workdir=runs/cifar10/sr32

`:runlocal` in all three is for a CPU. Hardware: one GPU, a minute. Expected: samples.png, eight
images of each class at 16 and 32 pixels.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.cifar10 import common


def get_config(arg=""):
    runlocal = arguments.parse(arg, runlocal=False)["runlocal"]
    base = dict(
        common.sampling("base16", runlocal),
        run="runs/cifar10/base16",
        stage=common.base_stage(runlocal),
    )
    super_resolution = dict(
        common.sampling("sr32", runlocal),
        run="runs/cifar10/sr32",
        stage=common.super_resolution_stage(runlocal),
        noise_augmentation=0.0,
    )
    return ConfigDict(
        dict(
            seed=0,
            class_names=common.CLASS_NAMES,
            text=common.TEXT,
            stages=dict(base16=base, sr32=super_resolution),
            batch_size=80,
            images_per_prompt=2 if runlocal else 8,
            show_stages=True,
        )
    )
