r"""Trains a small ResNet on one arm: real, generated, real+generated or pool.

python -m classifiers.train --config=configs/digits/classifier.py:arm=real+generated,k=10 \
    --workdir=runs/digits/classifiers/real+generated_10x

k is the number of generated sets of the real set's size. Hardware: 2 CPU cores, a minute. Expected
validation accuracy: real 79%, real+generated (k=30) 93%, pool 99%.
"""

from ml_collections import ConfigDict, config_dict

from configs import arguments


def get_config(arg=""):
    args = arguments.parse(arg, arm="real", k=30, runlocal=False)
    real = dict(name="digits", split="train")
    generated = dict(name="synthetic", path="runs/digits/generated", copies=args["k"])
    arms = {
        "real": dict(real=real),
        "generated": dict(generated=generated),
        "real+generated": dict(real=real, generated=generated),
        "pool": dict(real=dict(name="digits", split="pool")),
    }
    if args["arm"] not in arms:
        raise ValueError(f"arm={args['arm']}: there is {', '.join(arms)}")
    config = ConfigDict()
    config.train_sources = arms[args["arm"]]
    config.in_memory = True
    config.synthetic_weight = config_dict.placeholder(float)
    config.loader_workers = 0
    config.evaluation_source = dict(name="digits", split="validation")
    config.evaluation_batch_size = 100
    config.seeds = 7
    config.vmap_seeds = False
    config.model = dict(
        name="resnet",
        stage_sizes=(1, 1, 1),
        width=16,
        bottleneck=False,
        small_stem=True,
        momentum=0.9,
        dtype="float32",
    )
    config.batch_size = 32
    config.total_steps = 350
    config.augment = dict(size=8, shift=1)
    config.label_smoothing = 0.1
    config.ema = dict()
    config.optimizer = dict(
        name="sgd",
        learning_rate=0.1,
        schedule="cosine",
        warmup_steps=20,
        weight_decay=5e-4,
        clip_norm=0.0,
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.log_every = 25
    config.evaluate_every = 0
    config.checkpoint_every = 0
    if args["runlocal"]:
        config.seeds = 2
        config.total_steps = 10
    return config
