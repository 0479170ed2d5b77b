r"""Draws photographs of CIFAR-10's classes with the two stages trained before.

python -m imagen_ft.sample --config=configs/cifar10/sample.py --workdir=runs/cifar10/samples

First train the two stages:

    python -m imagen_ft.finetune --config=configs/cifar10/finetune_base16.py \
        --workdir=runs/cifar10/base16
    python -m imagen_ft.finetune --config=configs/cifar10/finetune_sr32.py \
        --workdir=runs/cifar10/sr32

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
On a CPU, add `:runlocal` to all three. Hardware: one GPU, a minute. Expected: samples.png, eight
images of each class at 16 and 32 pixels.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.cifar10 import common, finetune_base16, finetune_sr32


def get_config(arg=""):
    args = arguments.parse(arg, runlocal=False)
    local = "runlocal" if args["runlocal"] else ""

    config = ConfigDict()
    config.seed = 0
    config.class_names = common.CLASS_NAMES
    config.text = common.TEXT
    config.negative_prompt = ""  # what guidance leads away from; '' is no text
    config.stages = dict(
        base16=dict(
            run="runs/cifar10/base16",
            stage=finetune_base16.get_config(local).stage,
            sampler=dict(name="ddpm", num_steps=128, logvar_coeff=0.0, eta=0.0),
            guidance_weight=1.25,
            threshold_percentile=99.5,
        ),
        sr32=dict(
            run="runs/cifar10/sr32",
            stage=finetune_sr32.get_config(local).stage,
            sampler=dict(name="ddpm", num_steps=64, logvar_coeff=0.1, eta=0.0),
            guidance_weight=1.0,
            threshold_percentile=99.5,
            noise_augmentation=0.0,  # t of the low-resolution image
        ),
    )
    config.batch_size = 80
    config.images_per_prompt = 8
    config.show_stages = True
    if not args["runlocal"]:
        for stage in config.stages.values():
            stage.stage.unet.dtype = "auto"  # bfloat16; on older GPUs float16
    if args["runlocal"]:
        config.images_per_prompt = 2
        for stage in config.stages.values():
            stage.sampler.num_steps = 2
    return config
