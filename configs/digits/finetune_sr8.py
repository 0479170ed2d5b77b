r"""Fine-tunes 4 -> 8 super-resolution on the 30 labelled digits.

python -m imagen_ft.finetune --config=configs/digits/finetune_sr8.py \
    --workdir=runs/digits/finetune_sr8

Hardware: 2 CPU cores, 20 seconds. Expected: validation loss 0.210.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import common


def get_config(arg=""):
    args = arguments.parse(arg, runlocal=False)

    config = ConfigDict()
    config.seed = 1  # other noise than the pretraining's
    config.batch_size = 32
    config.total_steps = 10
    config.accumulation = 1  # microbatches per step

    config.class_names = common.CLASS_NAMES
    config.train_source = dict(name="digits", split="train")
    config.text = common.text()
    config.text_drop = 0.1  # share of prompts replaced by no text

    config.stage = common.super_resolution_stage()
    config.init_from = "runs/digits/pretrain_sr8"
    config.frozen = ()
    config.loss = dict(min_snr_gamma=0.0, vlb_weight=0.0)
    config.optimizer = dict(
        name="adam",
        learning_rate=3e-6,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.ema = dict(main=dict(decay=0.99, schedule="warmup"))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = dict(name="digits", split="validation")
    config.evaluation_batch_size = 100
    config.evaluation_draws = 4  # of noise per image
    config.log_every = 5  # steps, like the next two
    config.evaluate_every = 5
    config.checkpoint_every = 200
    config.keep_checkpoints = 2
    config.profile = dict(start=0, steps=0)
    if args["runlocal"]:
        config.total_steps, config.checkpoint_every, config.evaluate_every = 20, 5, 10
    return config
