r"""Trains a DeiT-S on any mix of real and synthetic images.

python -m classifiers.train --config=configs/imagenet/deit_s.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/deit_s/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x2x4` what a chip needs.

Touvron et al. 2021, table 9; the learning rate is 5e-4 per 512 images.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 16 TPU v4, 1.7 hours (1.7 by operations, 0.2 to decode), or 8 H100, 1.1 hours (0.9 by
operations, 1.1 to decode). Expected top-1 (%), real / synthetic / both: 78.97 / 72.26 / 80.49
(Azizi et al. 2023, table 3).
"""

from ml_collections import ConfigDict, config_dict

from configs.imagenet import recognition


def get_config(arg="", name="deit_s"):
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
    config.repeats = 3  # rows of a batch per image (repeated augmentation)
    config.augment = dict(
        size=224,  # pixels
        crop=dict(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),  # shares of the area; width / height
        flip=True,
        # timm's rand-m9-mstd0.5-inc1: two layers, each applied half of the time.
        randaugment=dict(layers=2, magnitude=9, std=0.5, increasing=True, probability=0.5),
        erasing=0.25,  # probability
    )
    config.mix = dict(mixup=0.8, cutmix=1.0)  # one of the two, with probability 1/2 each

    config.model = dict(name=name, dtype="bfloat16")
    config.init_from = ""
    config.loss = "cross_entropy"
    config.label_smoothing = 0.1
    config.optimizer = dict(
        name="adamw",
        learning_rate=5e-4 * batch_size / 512,  # at its peak: 1e-3 with batches of 1024
        schedule="cosine",
        warmup_steps=recognition.warmup_steps(5, batch_size, args),  # 5 epochs
        warmup_from=1e-6,
        weight_decay=0.05,
        no_decay=("positions", "token"),
        clip_norm=0.0,  # no clipping
    )
    config.ema = dict(main=dict(decay=0.99996, schedule="constant"))  # DeiT's
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = recognition.evaluation_source(args)
    config.evaluation_batch_size = 1024
    config.evaluation = dict(size=224, crop_ratio=0.875)  # the central 224 of 256 pixels
    config.log_every = 100  # steps, like the next two
    config.evaluate_every = 5000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
    if args["runlocal"]:
        recognition.shrink(config)
    return config
