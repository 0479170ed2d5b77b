r"""Fine-tunes 4 -> 8 super-resolution on the 30 labelled digits.

python -m imagen_ft.finetune --config=configs/digits/finetune_sr8.py \
    --workdir=runs/digits/finetune_sr8

Hardware: 2 CPU cores, 20 seconds. Expected: validation loss 0.16.
"""

from configs import arguments
from configs.digits import common


def get_config(arg=""):
    args = arguments.parse(arg, runlocal=False)
    config = common.training(
        common.super_resolution_stage(),
        optimizer="adam",
        learning_rate=1e-4,
        schedule="constant",
        split="train",
        init_from="runs/digits/pretrain_sr8",
        steps=25,
        batch_size=32,
    )
    # Not the noise that pretraining has seen.
    config.seed = 1
    config.log_every, config.evaluate_every = 5, 20
    if args["runlocal"]:
        config.total_steps, config.checkpoint_every, config.evaluate_every = 20, 5, 10
    return config
