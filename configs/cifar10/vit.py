r"""Trains a small vision transformer on CIFAR-10's photographs, and on synthetic ones.

python -m classifiers.train --config=configs/cifar10/vit.py:arm=real \
    --workdir=runs/cifar10/vit/real

`recognition.py` describes the arguments (`:arm=real+synthetic,k=2`, `:cpu`, `:runlocal`, ...), and
`finetune_base16.py` the data. Patches are 4 px; positions and pooling are the plain ViT-S/16's.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU, minutes. `:cpu` has a third of the width and half the depth, for 2 cores.
"""

from ml_collections import ConfigDict, config_dict

from configs.cifar10 import common, recognition


def get_config(arg=""):
    args = recognition.parse(arg)
    batch_size = 128 if args["cpu"] else 256
    epochs = 20 if args["cpu"] else 200

    config = ConfigDict()
    config.seeds = 1
    config.vmap_seeds = False
    config.batch_size = batch_size
    config.total_steps = recognition.epochs_to_steps(epochs, batch_size, args)

    config.num_classes = 10
    config.train_sources = recognition.train_sources(args)
    config.synthetic_weight = config_dict.placeholder(float)  # share of a batch; None shuffles all
    config.synthetic_loss_weight = 1.0
    config.in_memory = True
    config.loader_workers = 0  # threads
    config.repeats = 1  # rows of a batch per image
    config.augment = dict(size=32, shift=4, flip=True)  # pixels
    config.mix = {}

    config.model = dict(
        name="vit",
        width=192,
        depth=8,
        num_heads=3,
        patch_size=4,  # pixels
        positions="sincos",
        pool="mean",
        drop_path=0.1,
        dtype="bfloat16",
    )
    if args["cpu"]:
        config.model.update(width=64, depth=4, num_heads=2, drop_path=0.0, dtype="float32")
    config.init_from = ""
    config.loss = "cross_entropy"
    config.label_smoothing = 0.1
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3 * batch_size / 256,  # at its peak
        schedule="cosine",
        warmup_steps=round(5 * args["images"] / batch_size),  # 5 epochs of the real images
        weight_decay=0.05,
        clip_norm=1.0,
    )
    config.ema = {}  # no average of the weights
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = common.source(args, "validation")
    config.evaluation_batch_size = 500
    config.evaluation = dict(size=32, crop_ratio=1.0)
    config.log_every = 50  # steps, like the next two
    # Every 2 or 10 epochs of the real images.
    config.evaluate_every = round((2 if args["cpu"] else 10) * args["images"] / batch_size)
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
    if args["runlocal"]:
        config.model.update(width=16, depth=1, num_heads=2, dtype="float32")
        recognition.shrink(config)
    return config
