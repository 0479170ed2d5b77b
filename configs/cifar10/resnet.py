r"""Trains a ResNet-18 for small images on CIFAR-10's photographs, and on synthetic ones.

python -m classifiers.train --config=configs/cifar10/resnet.py:arm=real \
    --workdir=runs/cifar10/classifiers/real

`recognition.py` describes the arguments (`:arm=real+synthetic,k=2`, `:cpu`, `:runlocal`, ...), and
`finetune_base16.py` the data.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU, minutes. `:cpu`, a smaller network, on 2 cores: 8 minutes. Expected with `:cpu`
and 12,000 real images: 61% test accuracy; with 20 epochs, `--config.total_steps=1875`, 67%.
"""

from ml_collections import ConfigDict, config_dict

from configs.cifar10 import common, recognition


def get_config(arg=""):
    args = recognition.parse(arg)
    batch_size = 128 if args["cpu"] else 256
    epochs = 13 if args["cpu"] else 100

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
        name="resnet",
        stage_sizes=(2, 2, 2, 2),
        width=64,
        bottleneck=False,
        small_stem=True,
        auxiliary_batch_norm=False,
        dtype="bfloat16",
    )
    if args["cpu"]:
        config.model.update(stage_sizes=(1, 1, 1), width=16, dtype="float32")
    config.init_from = ""
    config.loss = "cross_entropy"
    config.label_smoothing = 0.1
    config.optimizer = dict(
        name="sgd",
        learning_rate=0.2 * batch_size / 256,  # at its peak
        schedule="cosine",
        warmup_steps=round(2 * args["images"] / batch_size),  # 2 epochs of the real images
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        clip_norm=0.0,  # no clipping
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
        config.model.update(stage_sizes=(1,), width=8, dtype="float32")
        recognition.shrink(config)
    return config
