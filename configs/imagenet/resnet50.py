r"""Trains a ResNet-50 on any mix of real and synthetic images.

python -m classifiers.train --config=configs/imagenet/resnet50.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/resnet50/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x4x4` what a chip needs.

Azizi et al. 2023, section 5.4, which does not give RandAugment's numbers; these are ResNet-RS-50's.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 32 TPU v4, 0.3 hours (0.3 by operations, 0.1 to decode), or 8 H100, 0.5 hours (0.3 by
operations, 0.5 to decode). Expected top-1 (%), real / synthetic / both: 76.39 / 69.24 / 78.17
(Azizi et al. 2023, table 3).
"""

from ml_collections import ConfigDict, config_dict

from configs.imagenet import recognition


def get_config(arg="", name="resnet50"):
    args = recognition.parse(arg)
    batch_size = args["batch"] or 4096
    epochs = args["epochs"] or 130

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
        crop=dict(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),  # shares of the area; width / height
        flip=True,
        randaugment=dict(layers=2, magnitude=10),  # ResNet-RS-50's (Bello et al. 2021)
    )
    config.mix = {}

    # Dropout of Azizi et al. 2023, section 5.4.
    config.model = dict(name=name, dropout=0.25, auxiliary_batch_norm=False, dtype="bfloat16")
    config.init_from = ""
    config.loss = "cross_entropy"
    config.label_smoothing = 0.1
    config.optimizer = dict(
        name="sgd",
        learning_rate=1.6 * batch_size / 4096,  # at its peak
        schedule="cosine",
        warmup_steps=recognition.warmup_steps(5, batch_size, args),  # 5 epochs
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        clip_norm=0.0,  # no clipping
    )
    config.ema = {}  # no average of the weights
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
