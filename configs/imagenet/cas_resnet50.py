r"""Trains the ResNet-50 of the classification accuracy score (CAS).

python -m classifiers.train --config=configs/imagenet/cas_resnet50.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/cas_resnet50/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x2x2` what a chip needs.

Ravuri & Vinyals 2019, trained as in Azizi et al. 2023 (section 5.2): on central crops only. The
score is the accuracy of the arm `synthetic`: 64.96 with samples of 256 px, 69.24 with 1024 px.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 8 TPU v4, 0.9 hours (0.9 by operations, 0.1 to decode), or 8 H100, 0.3 hours (0.2 by
operations, 0.3 to decode). Expected top-1 (%), real / synthetic / both: 73.09 / 69.24 / -.
"""

from ml_collections import ConfigDict, config_dict

from configs.imagenet import recognition


def get_config(arg=""):
    args = recognition.parse(arg)
    batch_size = args["batch"] or 1024
    epochs = args["epochs"] or 90

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
    config.augment = {}  # the evaluation's central crop
    config.mix = {}

    config.model = dict(name="resnet50", dtype="bfloat16")
    config.init_from = ""
    config.loss = "cross_entropy"
    config.label_smoothing = 0.0
    config.optimizer = dict(
        name="sgd",
        learning_rate=0.1 * batch_size / 256,  # 0.4 with batches of 1024
        schedule="step",
        # Steps after 30, 60 and 80 epochs, each of which divides the rate by 10.
        boundaries=tuple(
            recognition.epochs_to_steps(epoch, batch_size, args) for epoch in (30, 60, 80)
        ),
        factor=0.1,
        warmup_steps=recognition.warmup_steps(5, batch_size, args),  # 5 epochs
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        clip_norm=0.0,  # no clipping
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
