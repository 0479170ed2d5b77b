r"""Trains a small ResNet on one arm: real, synthetic, real+synthetic or pool.

python -m classifiers.train --config=configs/digits/classifier.py:arm=real+synthetic,k=10 \
    --workdir=runs/digits/classifiers/real+synthetic_10x

k is the number of synthetic copies of the real set. Hardware: 2 CPU cores, a minute. Expected
validation accuracy: real 79%, real+synthetic (k=30) 98%, pool 99%.
"""

from ml_collections import ConfigDict, config_dict

from configs import arguments, classification


def get_config(arg=""):
    args = arguments.parse(arg, arm="real", k=30, runlocal=False)

    config = ConfigDict()
    config.seeds = 7
    config.vmap_seeds = False
    config.batch_size = 32
    config.total_steps = 350

    config.train_sources = classification.arm_sources(
        args["arm"],
        real=dict(name="digits", split="train"),
        synthetic=dict(name="synthetic", path="runs/digits/synthetic", copies=args["k"]),
        pool=dict(name="digits", split="pool"),
    )
    config.synthetic_weight = config_dict.placeholder(float)  # share of a batch; None shuffles all
    config.synthetic_loss_weight = 1.0
    config.in_memory = True
    config.loader_workers = 0  # threads
    config.repeats = 1  # rows of a batch per image
    config.augment = dict(size=8, shift=1)  # pixels
    config.mix = {}

    config.model = dict(
        name="resnet",
        stage_sizes=(1, 1, 1),
        width=16,
        bottleneck=False,
        small_stem=True,
        momentum=0.9,
        dtype="float32",
    )
    config.init_from = ""
    config.loss = "cross_entropy"
    config.label_smoothing = 0.1
    config.optimizer = dict(
        name="sgd",
        learning_rate=0.1,  # at its peak
        schedule="cosine",
        warmup_steps=20,
        weight_decay=5e-4,
        clip_norm=0.0,  # no clipping
    )
    config.ema = {}  # no average of the weights
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = dict(name="digits", split="validation")
    config.evaluation_batch_size = 100
    config.log_every = 25  # steps
    config.evaluate_every = 0  # only at the end
    config.checkpoint_every = 0  # only at the end
    config.keep_checkpoints = 2
    if args["runlocal"]:
        config.seeds, config.total_steps = 2, 10
    return config
