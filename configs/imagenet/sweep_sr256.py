r"""Searches for the best way of sampling Imagen's 64 -> 256: the grid of Azizi et al. 2023.

python -m imagen_ft.sweep --config=configs/imagenet/sweep_sr256.py \
    --workdir=runs/imagenet/sweep_sr256

`sweeps.py` describes the arguments. First run `imagen_base64.py` and `imagen_sr256.py`, and get
Inception's weights. The grid has guidance, noise augmentation, log-variance coefficient and steps:
150 points of 50,000 images, all enlarged from the same images of the base, which are drawn once;
with `:low` or `:runlocal`, from real validation images, shrunk. `--budget=1500000` draws a fifth of
the images.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 256 TPU v4 or more. Expected: guidance 1, coefficient 0.1, no noise and 1000 steps, FID
2.8.
"""

from configs.imagenet import imagen_sr256, sweeps
from configs.imagenet.images import real_images


def get_config(arg=""):
    args = sweeps.parse(arg, low=False)
    grid = dict(
        guidance_weight=(1.0, 2.0, 5.0, 10.0, 30.0),
        noise_augmentation=(0.0, 0.1, 0.2, 0.3, 0.4),
        logvar_coeff=(0.1, 0.3),
        num_steps=(128, 500, 1000),
    )
    chosen = dict(noise_augmentation=0.0, logvar_coeff=0.1, num_steps=1000)
    config = sweeps.sweep(args, "imagen_sr256", 256, grid, chosen)
    if args["low"] or args["runlocal"]:
        config.low = dict(source=real_images(args, "val"))
    if args["runlocal"]:
        # Only the tiny stage, which enlarges real images: no run of a tiny base is needed.
        base = config.cascade.stages.imagen_base64
        stage = imagen_sr256.get_config("runlocal").stage
        config.cascade.stages = dict(
            imagen_sr256=dict(base, run="runs/imagenet/imagen_sr256", stage=stage)
        )
        config.reference.source.square = config.reference.held_out.square = stage.size
    return config
