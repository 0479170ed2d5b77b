r"""Trains a tiny CLIP on digits and sentences with their names; it needs no download.

python -m classifiers.train_clip --config=configs/clip/tiny.py --workdir=runs/clip/tiny

Arguments: `arm`, `real` (the pool of 1,000), `synthetic` (the demo's digits, whose captions are
their prompts) or `real+synthetic`; `synthetic`, their folder; `runlocal`, a few steps.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 2 CPU cores, 8 minutes. Expected: 94% zero-shot accuracy on the 667 test digits
(`--config.evaluation_source.split=test`).
"""

from ml_collections import ConfigDict

from configs import arguments, classification


def get_config(arg=""):
    args = arguments.parse(arg, arm="real", synthetic="runs/digits/synthetic", runlocal=False)
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 100
    config.total_steps = 1500
    config.train_sources = classification.arm_sources(
        args["arm"],
        real=dict(name="digits", split="pool"),
        synthetic=dict(name="synthetic", path=args["synthetic"], caption="class_name"),
    )
    config.draw = "union"
    config.templates = ("a photo of the number {}.", "the digit {}.", "{}")
    config.tokenizer = "bytes"
    config.loader_workers = 0  # threads
    config.augment = dict(size=8, shift=1)  # pixels
    config.channels = 1

    config.clip = dict(
        image=dict(
            name="vit",
            width=64,
            depth=3,
            num_heads=2,
            patch_size=2,
            norm_eps=1e-5,
            pre_norm=True,
            patch_bias=False,
        ),
        text=dict(
            width=64,
            mlp_width=256,
            num_layers=2,
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
        learning_rate=2e-3,  # at its peak
        schedule="cosine",
        warmup_steps=50,
        b1=0.9,
        b2=0.98,  # Radford et al. 2021, like eps
        eps=1e-6,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    config.ema = {}  # no average of the weights
    config.mesh = dict(data=-1, fsdp=1, tensor=1)

    config.evaluation_source = dict(name="digits", split="validation")
    config.evaluation = dict(size=8)
    config.evaluation_templates = ("a photo of the number {}.",)
    config.evaluation_batch_size = 100
    config.log_every = 20  # steps, like the next two
    config.evaluate_every = 100
    config.checkpoint_every = 0  # only at the end
    config.keep_checkpoints = 2
    if args["runlocal"]:
        config.total_steps, config.optimizer.warmup_steps = 6, 2
        config.log_every, config.evaluate_every = 2, 3
        config.clip.image.depth, config.clip.text.num_layers = 1, 1
    return config
