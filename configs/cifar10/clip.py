r"""Trains a tiny CLIP on CIFAR-10's photographs and sentences with their class names.

python -m classifiers.train_clip --config=configs/cifar10/clip.py --workdir=runs/cifar10/clip

It learns only some of the ten classes, for `few_shot.py`. Arguments: `classes`, their names joined
by +, or `all`; `data`, `root` as in `resnet.py`; `runlocal`, a few steps.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 2 CPU cores, 7 minutes. Expected: 71% accuracy on the held-out images of the five classes.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.cifar10 import common


def get_config(arg=""):
    args = arguments.parse(
        arg,
        classes="airplane+bird+cat+horse+truck",
        data=common.DATA,
        root="cifar10_sample",
        runlocal=False,
    )
    classes = {} if args["classes"] == "all" else dict(classes=tuple(args["classes"].split("+")))
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 64
    config.total_steps = 1200
    config.train_sources = dict(real=dict(common.source(args, "train"), **classes))
    config.draw = "union"
    config.templates = ("a photo of a {}.", "{}")
    config.tokenizer = "bytes"
    config.loader_workers = 0  # threads
    config.augment = dict(size=32, shift=4, flip=True)  # pixels
    config.channels = 3

    config.clip = dict(
        image=dict(
            name="vit",
            width=64,
            depth=4,
            num_heads=2,
            patch_size=4,
            norm_eps=1e-5,
            pre_norm=True,
            patch_bias=False,
        ),
        text=dict(
            width=64,
            mlp_width=256,
            num_layers=1,
            num_heads=2,
            projection_width=64,
            vocab_size=514,  # 256 bytes, 256 that end a word, start and end
            max_length=26,
            end_token=513,
        ),
        projection_width=64,
        dtype="float32",
    )
    config.init_from = ""
    config.loss_chunk = 0  # rows of logits at a time; 0 is all
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3,  # at its peak
        schedule="cosine",
        warmup_steps=100,
        b1=0.9,
        b2=0.98,  # Radford et al. 2021, like eps
        eps=1e-6,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    config.ema = {}  # no average of the weights
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = dict(common.source(args, "validation"), **classes)
    config.evaluation = dict(size=32)
    config.evaluation_templates = "1"
    config.evaluation_batch_size = 250
    config.log_every = 50  # steps, like the next two
    config.evaluate_every = 400
    config.checkpoint_every = 0  # only at the end
    config.keep_checkpoints = 2
    if args["runlocal"]:
        config.clip.image.depth = 1
        config.total_steps, config.optimizer.warmup_steps, config.batch_size = 6, 2, 16
        config.log_every, config.evaluate_every = 2, 3
    return config
