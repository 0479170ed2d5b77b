r"""Trains a 16x16 base on CIFAR-10's photographs, from scratch.

python -m imagen_ft.finetune --config=configs/cifar10/finetune_base16.py \
    --workdir=runs/cifar10/base16

The data is any export of CIFAR-10 as images, one folder per class, in a folder or a zip: by default
`cifar10_sample/train/airplane/0000.jpg`, ... in `data/cifar10_sample.zip`. Arguments name others:
`:data=data/cifar10,root=` reads `data/cifar10/train/airplane/...`.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU, 5 minutes (0.4 TFLOP per step; decoding takes as long). `:runlocal` trains a
small network for 20 steps, on a CPU.
"""

from ml_collections import ConfigDict

from configs.cifar10 import common
from configs.measures import while_training


def get_config(arg=""):
    args = common.parse(arg)

    config = ConfigDict()
    config.seed = 0
    config.batch_size = 128
    config.total_steps = 20_000
    config.accumulation = 1  # microbatches per step

    config.class_names = common.CLASS_NAMES
    config.train_source = common.source(args, "train")
    config.crop_size = 0  # whole images
    config.flip = True
    config.text = common.TEXT
    config.text_drop = 0.1  # share of prompts replaced by no text

    config.stage = dict(
        size=16,  # pixels
        low_size=0,  # from noise alone
        channels=3,
        schedule="cosine",
        prediction="eps",
        unet=dict(
            block_out_channels=(64, 128, 256),
            layers_per_block=2,
            attention=(False, True, True),
            cross_attention_dim=256,
            attention_head_dim=64,
            num_groups=32,
            cross_num_groups=32,
            pooling_heads=4,
            dtype="bfloat16",
        ),
    )
    config.init_from = ""  # from scratch
    config.frozen = ()
    config.loss = dict(min_snr_gamma=0.0, vlb_weight=0.0)
    config.optimizer = dict(
        name="adam",
        learning_rate=5e-4,  # at its peak
        schedule="cosine",
        warmup_steps=500,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.ema = dict(main=dict(decay=0.999, schedule="warmup"))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = common.source(args, "validation")
    config.evaluation_batch_size = 512
    config.evaluation_draws = 2  # of noise per image
    config.log_every = 100  # steps, like the other intervals
    config.evaluate_every = 2000
    config.checkpoint_every = 2000
    config.keep_checkpoints = 2
    config.best = dict(metric="validation_loss", mode="min")
    config.pictures_every = 2000
    config.pictures = dict(
        count=10,
        sampler=dict(name="ddpm", num_steps=128, logvar_coeff=0.0, eta=0.0),
        guidance_weight=1.25,
        threshold_percentile=99.5,  # dynamic thresholding (Saharia et al. 2022)
    )
    # KID: the 500 held-out images are too few for an FID.
    config.evaluation_metric = while_training(config.pictures, "kernel", 500, subset_size=100)
    config.profile = dict(start=0, steps=0)
    if args["runlocal"]:
        common.shrink(config)
    return config
