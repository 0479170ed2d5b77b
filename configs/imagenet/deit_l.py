r"""Trains a DeiT-L (DeiT III) at 192 px on any mix of real and synthetic images.

python -m classifiers.train --config=configs/imagenet/deit_l.py:arm=real+synthetic,k=1 \
    --workdir=runs/imagenet/deit_l/real+synthetic

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:4x4x4` what a chip needs.

"Diversify, Don't Fine-Tune" (2023), table 6. DeiT III itself uses binary cross-entropy:
`--config.loss=bce --config.label_smoothing=0.0`. LAMB follows You et al. 2020, algorithm 2, with
the trust ratio for all parameters; DeiT III's code omits it for those without weight decay, and
clips at a norm of 1.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 64 TPU v4, 4.1 hours (4.1 by operations, 0.1 to decode), or 8 H100, 9.1 hours (9.1 by
operations, 1.1 to decode). Expected top-1 (%), real / synthetic / both: 82.22 / 74.60 / 83.05
(Azizi et al. 2023, table 3; theirs at 224 px).
"""

from ml_collections import ConfigDict, config_dict

from configs.imagenet import recognition


def get_config(arg=""):
    args = recognition.parse(arg)
    batch_size = args["batch"] or 2048
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
    config.repeats = 1  # rows of a batch per image
    config.augment = dict(
        size=192,  # pixels
        crop=dict(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),  # shares of the area; width / height
        flip=True,
        # The paper gives the magnitude; the rest is DeiT's.
        randaugment=dict(layers=2, magnitude=9, std=0.5, increasing=True, probability=0.5),
    )
    config.mix = dict(mixup=0.8, cutmix=1.0)  # one of the two, with probability 1/2 each

    config.model = dict(name="deit_l", remat=False, dtype="bfloat16")
    config.init_from = ""
    config.loss = "cross_entropy"
    config.label_smoothing = 0.1
    config.optimizer = dict(
        name="lamb",
        learning_rate=3e-3 * batch_size / 2048,  # at its peak
        schedule="cosine",
        warmup_steps=recognition.warmup_steps(5, batch_size, args),  # 5 epochs
        weight_decay=0.05,
        no_decay=("positions", "token"),
        clip_norm=0.0,  # no clipping
    )
    config.ema = {}  # no average of the weights
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = recognition.evaluation_source(args)
    config.evaluation_batch_size = 1024
    config.evaluation = dict(size=192, crop_ratio=1.0)
    config.log_every = 100  # steps, like the next two
    config.evaluate_every = 5000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
    if args["runlocal"]:
        recognition.shrink(config)
    return config
