r"""Trains CLIP ViT-B/16 on real pairs, synthetic ones, or both, as in Fan et al. 2024, section 5.

python -m classifiers.train_clip --config=configs/clip/vit_b16.py:arm=random \
    --workdir=runs/clip/vit_b16/random

Arguments after the file's name:

    arm         real (the default), synthetic (synthetic), real+synthetic (all count the same), or
                random: every step draws the real or the synthetic image of each caption anew
    data        tars of real pairs in WebDataset's layout (`*.jpg` and `*.txt`); instead of them
    parquet     a folder of Parquet files with the columns `image` and `caption`
    synthetic   a synthetic set whose prompts are the captions
    pairs       the number of pairs, which is the length of an epoch
    epochs      32, as in the paper
    batch       32768, as OpenAI's
    tokenizer   the folder of CLIP's tokenizer
    val         ImageNet's images for the zero-shot accuracy: `images.py` in configs/imagenet
                explains `imagenet`, `train`, `val` and `tfds`
    runlocal    a few steps of a tiny network, on drawn shapes

Learning rate, betas and weight decay are open_clip's for ViTs. Fan et al. scale the data from 1 to
371 million pairs: `:pairs=1000000`, `4000000`, `8000000`, ...

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 64 TPU v4; `--preflight=v4:4x4x4` shows what a chip needs.
"""

from ml_collections import ConfigDict, config_dict

from configs import arguments, classification
from configs.imagenet.images import DATA, real_images

# CLIP's 80 sentences for each class (Radford et al. 2021), with CLIP's own class names.
_TEMPLATES = "80"


def get_config(arg=""):
    args = arguments.parse(
        arg,
        arm="real",
        data="data/pairs/*.tar",
        parquet="",
        synthetic="data/pairs_synthetic",
        pairs=1_000_000,
        epochs=32,
        batch=32_768,
        tokenizer="data/clip_tokenizer",
        imagenet=DATA,
        train="train",
        val="val",
        tfds="",
        runlocal=False,
    )
    config = ConfigDict()
    config.seed = 0
    config.batch_size = args["batch"]
    config.total_steps = max(1, round(args["epochs"] * args["pairs"] / args["batch"]))
    config.train_sources = _sources(args)
    config.draw = "one_of_each" if args["arm"] == "random" else "union"
    config.synthetic_weight = config_dict.placeholder(float)  # share of a batch; None shuffles all
    config.templates = "1"
    config.tokenizer = args["tokenizer"]
    config.loader_workers = -1  # one process per CPU
    config.augment = dict(
        size=224, crop=dict(scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3))
    )  # of the area
    config.channels = 3

    config.clip = dict(name="clip_vit_b16", dtype="bfloat16")
    config.init_from = ""
    config.loss_chunk = 1024  # rows of logits at a time on a device
    config.optimizer = dict(
        name="adamw",
        learning_rate=5e-4,  # at its peak
        schedule="cosine",
        warmup_steps=min(10_000, config.total_steps // 10),
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        no_decay=(),
        clip_norm=0.0,  # no clipping
    )
    config.ema = {}  # no average of the weights
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = real_images(dict(args, data=args["imagenet"]), "val")
    config.evaluation = dict(size=224, resize="pil_bicubic", crop_ratio=1.0)
    config.evaluation_templates = _TEMPLATES
    config.evaluation_batch_size = 1024
    config.log_every = 50  # steps, like the next two
    config.evaluate_every = 2000
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    if args["runlocal"]:
        _shrink(config)
    return config


def _sources(args: dict) -> dict:
    if args["parquet"]:
        real = dict(name="parquet", path=args["parquet"], label="", caption="caption")
    else:
        real = dict(name="webdataset", path=args["data"], caption="txt")
    synthetic = dict(name="synthetic", path=args["synthetic"], caption="prompt")
    arm = "real+synthetic" if args["arm"] == "random" else args["arm"]
    return classification.arm_sources(arm, real=real, synthetic=synthetic)


def _shrink(config: ConfigDict) -> None:
    config.train_sources = dict(real=config.evaluation_source)
    config.draw, config.tokenizer = "union", "bytes"
    config.batch_size, config.total_steps, config.optimizer.warmup_steps = 8, 4, 1
    config.evaluation_batch_size, config.evaluation_templates = 8, "1"
    config.log_every, config.evaluate_every, config.checkpoint_every = 2, 4, 4
    config.loader_workers, config.loss_chunk = 0, 4
    config.augment.size = config.evaluation.size = 32
    config.clip = dict(
        name="clip_vit_b16",
        image=dict(width=32, depth=1, num_heads=2),
        text=dict(
            width=32,
            mlp_width=64,
            num_layers=1,
            num_heads=2,
            projection_width=32,
            vocab_size=514,
            max_length=32,
            end_token=513,
        ),
        projection_width=32,
        dtype="float32",
    )
