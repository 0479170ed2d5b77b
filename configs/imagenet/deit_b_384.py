r"""Fine-tunes a DeiT-B at 384 px, on any mix of real and synthetic images.

python -m classifiers.train --config=configs/imagenet/deit_b_384.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/deit_b_384/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x4x4` what a chip needs.

Touvron et al. 2021, section 5: the learning rate is constant. It starts from the run of `deit_b.py`
on the same arm, runs/imagenet/deit_b/ARM; `--config.init_from=DIR` names another.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 32 TPU v4, 1.0 hours (1.0 by operations, 0.0 to decode), or 8 H100, 1.1 hours (1.1 by
operations, 0.1 to decode). Expected top-1 (%), real / synthetic / both: 83.16 / 75.45 / 83.75
(Azizi et al. 2023, table 3).
"""

from ml_collections import ConfigDict, config_dict

from configs.imagenet import recognition


def get_config(arg=""):
    args = recognition.parse(arg)
    batch_size = args["batch"] or 512
    epochs = args["epochs"] or 30

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
        size=384,  # pixels
        crop=dict(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),  # shares of the area; width / height
        flip=True,
        # timm's rand-m9-mstd0.5-inc1: two layers, each applied half of the time.
        randaugment=dict(layers=2, magnitude=9, std=0.5, increasing=True, probability=0.5),
        erasing=0.25,  # probability
    )
    config.mix = dict(mixup=0.8, cutmix=1.0)  # one of the two, with probability 1/2 each

    config.model = dict(name="deit_b_384", dtype="bfloat16")
    config.init_from = f"runs/imagenet/deit_b/{args['arm']}"
    config.loss = "cross_entropy"
    config.label_smoothing = 0.1
    config.optimizer = dict(
        name="adamw",
        learning_rate=5e-6 * batch_size / 512,
        schedule="constant",
        warmup_steps=0,
        weight_decay=1e-8,
        no_decay=("positions", "token"),
        clip_norm=0.0,  # no clipping
    )
    config.ema = {}  # no average of the weights
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = recognition.evaluation_source(args)
    config.evaluation_batch_size = 1024
    config.evaluation = dict(size=384, crop_ratio=1.0)
    config.log_every = 100  # steps, like the next two
    config.evaluate_every = 5000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
    if args["runlocal"]:
        recognition.shrink(config)
    return config
