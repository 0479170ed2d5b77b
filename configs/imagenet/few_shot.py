r"""Fine-tunes adapters of a public model on 16 images per class of ImageNet, on one device.

python -m imagen_ft.finetune --config=configs/imagenet/few_shot.py \
    --workdir=runs/imagenet/few_shot

`:model=sd15` and `:model=sd21` adapt Stable Diffusion instead of DeepFloyd IF-I-L. `:prior=SET`
adds a synthetic set of the same classes (prior preservation, DreamBooth): half of every batch, with
the same weight. `--config.text_drop=0` never drops the text.

First prepare weights and text once, as for `if_i_l.py`, `sd15.py` or `sd21.py`, whose arguments
work here too. The network stays frozen, in bfloat16. Adapters of rank 16 train in its attention
layers (LoRA), and a checkpoint holds only them. `:runlocal` has no weights to adapt, and trains its
tiny network.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one device of 24 GB, by estimate: the network takes 2 bytes per parameter, and its blocks
are recomputed for the gradients. `--preflight=v6e:1x1` prints at once what is held between steps,
1.8 GiB; to count a step's own memory it compiles for more than 40 minutes.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet import if_i_l, sd15, sd21

MODELS = dict(if_i_l=if_i_l, sd15=sd15, sd21=sd21)


def get_config(arg=""):
    args, others = arguments.split(arg, prior="", model="if_i_l")
    if args["model"] not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {args['model']}")
    config = MODELS[args["model"]].get_config(others)
    config.train_source.per_class = 16
    config.prior = dict()
    if args["prior"]:
        # Ruiz et al. 2023, Eq. 2, with lambda = 1.
        config.prior = dict(
            source=dict(name="synthetic", path=args["prior"]), share=0.5, weight=1.0
        )
    if not config.init_from:
        return config

    # He et al. 2023 use at most 16 shots. Rank, rate and length are our own, close to those of
    # common LoRA scripts.
    config.lora = dict(rank=16, alpha=16.0, base_dtype="bfloat16")
    config.batch_size, config.accumulation = 64, 4  # microbatches of 16 images
    config.total_steps = 2500  # ten epochs
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=1e-4,
            schedule="constant",
            warmup_steps=100,
            weight_decay=1e-2,
            clip_norm=1.0,
        )
    )
    config.ema = ConfigDict(dict(main=dict(decay=0.99, schedule="warmup")))
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.stage.unet.remat = True
    config.evaluation_batch_size = 64
    config.log_every, config.evaluate_every = 50, 500
    config.checkpoint_every = config.pictures_every = 500
    return config
