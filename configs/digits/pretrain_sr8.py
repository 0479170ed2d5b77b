r"""Pretrains 4 -> 8 super-resolution on the pool of 1,000 digits.

python -m imagen_ft.finetune --config=configs/digits/pretrain_sr8.py \
    --workdir=runs/digits/pretrain_sr8

Hardware: 2 CPU cores, 2 minutes. Expected: validation loss 0.16.
"""

from configs import arguments
from configs.digits import common


def get_config(arg=""):
    args = arguments.parse(arg, runlocal=False)
    config = common.training(
        common.super_resolution_stage(),
        optimizer="adam",
        learning_rate=2e-3,
        schedule="cosine",
        split="pool",
        init_from="",
        steps=850,
        batch_size=32,
    )
    if args["runlocal"]:
        config.total_steps, config.checkpoint_every, config.evaluate_every = 20, 5, 10
    return config
