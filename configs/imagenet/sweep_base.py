r"""Searches for the best way of sampling Imagen's base: the grid of Azizi et al. 2023.

python -m imagen_ft.sweep --config=configs/imagenet/sweep_base.py \
    --workdir=runs/imagenet/sweep_base

`sweeps.py` describes the arguments. First run `imagen_base64.py`, and get Inception's weights. The
grid has guidance, log-variance coefficient and steps: 90 points of 50,000 images, compared by FID
against validation. `--dry_run` counts evaluations, `--budget=900000` draws a fifth of the images,
and `--worker=I --num_workers=N` shares them among N jobs.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 256 TPU v4 or more. Expected: guidance 1.25, coefficient 0 and 1000 steps, FID 2.5.
"""

from configs.imagenet import sweeps


def get_config(arg=""):
    args = sweeps.parse(arg)
    grid = dict(
        guidance_weight=(1.0, 1.25, 1.5, 1.75, 2.0, 5.0),
        logvar_coeff=(0.0, 0.2, 0.3, 0.4, 1.0),
        num_steps=(128, 500, 1000),
    )
    chosen = dict(logvar_coeff=0.0, num_steps=1000)
    return sweeps.sweep(args, "imagen_base64", 64, grid, chosen)
