r"""Trains a plain ViT-S/16 on any mix of real and synthetic images.

python -m classifiers.train --config=configs/imagenet/vit_s16.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/vit_s16/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x2x4` what a chip needs.

Beyer et al. 2022 (Better plain ViT baselines); `:epochs=90` is their short form. Their weight
decay of 1e-4 is not multiplied by the learning rate of 1e-3, AdamW's is: 0.1 has the same effect.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 16 TPU v4, 1.7 hours (1.7 by operations, 0.2 to decode), or 8 H100, 1.1 hours (0.9 by
operations, 1.1 to decode). Expected top-1 (%), real / synthetic / both: 79.89 / 71.88 / 81.00
(Azizi et al. 2023, table 3).
"""

from ml_collections import ConfigDict, config_dict

from configs.imagenet import recognition


def get_config(arg=""):
    args = recognition.parse(arg)
    batch_size = args["batch"] or 1024
    epochs = args["epochs"] or 300

    config = ConfigDict()
    config.seeds = 1
    config.vmap_seeds = False
    config.batch_size = batch_size
    config.total_steps = recognition.epochs_to_steps(epochs, batch_size, args)

    config.num_classes = 1000
    config.train_sources = recognition.train_sources(args)
    config.synthetic_weight = config_dict.placeholder(float)  # share of a batch; None shuffles all
    config.synthetic_loss_weight = 1.0
    config.in_memory = False
    config.loader_workers = -1  # one process per CPU
    config.repeats = 1  # rows of a batch per image
    config.augment = dict(
        size=224,  # pixels
        crop=dict(scale=(0.05, 1.0), ratio=(3 / 4, 4 / 3)),  # shares of the area; width / height
        flip=True,
        randaugment=dict(layers=2, magnitude=10),
    )
    config.mix = dict(mixup=0.2)

    config.model = dict(name="vit_s16", dtype="bfloat16")
    config.init_from = ""
    config.loss = "cross_entropy"
    config.label_smoothing = 0.0
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3 * batch_size / 1024,  # at its peak
        schedule="cosine",
        warmup_steps=round(10_000 * 1024 / batch_size),  # the images of 10,000 steps at 1024
        mu_dtype="bfloat16",  # of the first moment
        weight_decay=0.1,
        no_decay=(),
        clip_norm=1.0,
    )
    config.ema = {}  # no average of the weights
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = recognition.evaluation_source(args)
    config.evaluation_batch_size = 1024
    config.evaluation = dict(size=224, crop_ratio=224 / 256)
    config.log_every = 100  # steps, like the next two
    config.evaluate_every = 5000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
    if args["runlocal"]:
        recognition.shrink(config)
    return config
