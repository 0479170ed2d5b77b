r"""Pretrains the 4x4 base on the pool of 1,000 digits.

python -m imagen_ft.finetune --config=configs/digits/pretrain_base4.py \
    --workdir=runs/digits/pretrain_base4

Hardware: 2 CPU cores, 2 minutes. Expected: validation loss 0.188.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import common


def get_config(arg=""):
    args = arguments.parse(arg, runlocal=False)

    config = ConfigDict()
    config.seed = 0
    config.batch_size = 32
    config.total_steps = 3000
    config.accumulation = 1  # microbatches per step

    config.class_names = common.CLASS_NAMES
    config.train_source = dict(name="digits", split="pool")
    config.text = common.text()
    config.text_drop = 0.1  # share of prompts replaced by no text

    config.stage = common.base_stage()
    config.init_from = ""  # from scratch
    config.frozen = ()
    config.loss = dict(min_snr_gamma=0.0, vlb_weight=0.0)
    config.optimizer = dict(
        name="adam",
        learning_rate=4e-3,
        schedule="cosine",
        warmup_steps=0,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.ema = dict(main=dict(decay=0.999, schedule="warmup"))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = dict(name="digits", split="validation")
    config.evaluation_batch_size = 100
    config.evaluation_draws = 4  # of noise per image
    config.log_every = 50  # steps, like the next two
    config.evaluate_every = 500
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    config.profile = dict(start=0, steps=0)
    if args["runlocal"]:
        config.total_steps, config.checkpoint_every, config.evaluate_every = 20, 5, 10
    return config
