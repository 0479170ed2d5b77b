r"""Trains a ResNet-RS-50 at 160 px on any mix of real and synthetic images.

python -m classifiers.train --config=configs/imagenet/resnet_rs50_160.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/resnet_rs50_160/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x4x4` what a chip needs.

Bello et al. 2021, table 7 and appendix; dropout 0.25 is the preset's. Evaluation resizes to 32 px
more and crops the centre, as TensorFlow's own training does.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 32 TPU v4, 0.5 hours (0.5 by operations, 0.1 to decode), or 8 H100, 1.2 hours (0.5 by
operations, 1.2 to decode). Expected top-1 (%), real / synthetic / both: 79.10 / 70.72 / 79.97
(Azizi et al. 2023, table 3).
"""

from ml_collections import ConfigDict, config_dict

from configs.imagenet import recognition


def get_config(arg="", name="resnet_rs_50", size=160, magnitude=10):
    args = recognition.parse(arg)
    batch_size = args["batch"] or 4096
    epochs = args["epochs"] or 350

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
        size=size,  # pixels
        crop=dict(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),  # shares of the area; width / height
        flip=True,
        randaugment=dict(layers=2, magnitude=magnitude),
    )
    config.mix = {}

    config.model = dict(name=name, auxiliary_batch_norm=False, dtype="bfloat16")
    config.init_from = ""
    config.loss = "cross_entropy"
    config.label_smoothing = 0.1
    config.optimizer = dict(
        name="sgd",
        learning_rate=0.1 * batch_size / 256,  # at its peak: 1.6 with batches of 4096
        schedule="cosine",
        warmup_steps=recognition.warmup_steps(5, batch_size, args),  # 5 epochs
        momentum=0.9,
        nesterov=False,
        weight_decay=4e-5,
        clip_norm=0.0,  # no clipping
    )
    config.ema = dict(main=dict(decay=0.9999, schedule="constant"))  # Bello et al. 2021
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = recognition.evaluation_source(args)
    config.evaluation_batch_size = 1024
    config.evaluation = dict(size=size, crop_ratio=size / (size + 32))  # the central crop
    config.log_every = 100  # steps, like the next two
    config.evaluate_every = 5000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
    if args["runlocal"]:
        recognition.shrink(config)
    return config
