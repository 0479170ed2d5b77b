r"""Trains Imagen's 400M super-resolution, 256 -> 1024, on crops of 64 -> 256.

python -m imagen_ft.finetune --config=configs/imagenet/imagen_sr1024.py \
    --workdir=runs/imagenet/imagen_sr1024

First, once:

    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-I-L-v1.0 --to=weights/IF-I-L
    python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-L \
        --to=data/imagenet_text128 --max_length=128

`common.py` describes the arguments (`:host`, `:runlocal`, `:data=DIR`, ...). Without the hardware,
`--dry_run` prints the network, and `--preflight=v4:4x4x16` what a chip needs.

The paper does not fine-tune this stage; the length is that of Imagen's own training. Give it images
of 1024 pixels or more (`:data=...`): most of ImageNet's are smaller, and enlarged ones teach it to
blur.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 256 TPU v4, 0.09 s a step, 65 hours (1.3 TFLOP an image at 40% of the peak). `:host`, 8
H100: 0.21 s a step, 6.0 days. By `--preflight` a v4 chip needs 5.3 GiB of its 32, and the compiler
estimates 0.065 s a step, nearly two thirds in convolutions; 0.038 s is the least for its FLOPs.
"""

from ml_collections import ConfigDict

from configs.imagenet import common
from configs.measures import while_training


def get_config(arg=""):
    args = common.parse(arg)

    config = ConfigDict()
    config.seed = 0
    # Saharia et al. 2022, appendix.
    config.batch_size = 2048
    config.total_steps = 2_500_000
    config.accumulation = 1  # microbatches per step

    config.class_names = "imagenet"
    config.train_source = common.train_source(args)
    config.crop_size = 256  # pixels of random crops
    config.flip = False
    # Tokens, channels; zeros stand for no text.
    config.text = dict(cache="data/imagenet_text128", null="zeros", shape=(128, 4096))
    config.text_drop = 0.1  # share of prompts replaced by no text (Saharia et al. 2022)

    config.stage = dict(
        size=1024,  # pixels
        low_size=256,
        channels=3,
        schedule="linear",
        prediction="eps",
        learned_variance=False,
        upsampling="bilinear",
        unet=dict(preset="imagen_sr1024", remat=False, dtype="bfloat16"),
    )
    config.init_from = ""  # from scratch
    config.frozen = ()
    config.loss = dict(min_snr_gamma=0.0, vlb_weight=0.0)
    # Saharia et al. 2022, appendix; the clipping is ours.
    config.optimizer = dict(
        name="adam",
        learning_rate=1e-4,
        schedule="constant",
        warmup_steps=10_000,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.ema = dict(main=dict(decay=0.9999, schedule="warmup"))  # Saharia et al. 2022, appendix
    config.mesh = dict(data=-1, fsdp=8, tensor=1)  # parameters split over 8 chips

    config.evaluation_source = common.evaluation_source(args)
    config.evaluation_batch_size = 2048
    config.evaluation_draws = 1  # of noise per image
    config.log_every = 100  # steps, like the other intervals
    config.evaluate_every = 5000
    config.checkpoint_every = 2500
    config.keep_checkpoints = 2
    config.best = dict(metric="validation_loss", mode="min")
    config.pictures_every = 5000
    config.pictures = dict(
        count=8,
        # Azizi et al. 2023, section 4.2.
        sampler=dict(name="ddim", num_steps=32, logvar_coeff=0.0, eta=0.0),
        guidance_weight=1.0,
        threshold_percentile=99.5,  # dynamic thresholding (Saharia et al. 2022)
    )
    config.evaluation_metric = while_training(config.pictures)
    config.profile = dict(start=0, steps=0)
    if args["host"]:
        config.batch_size, config.accumulation = 512, 2
        config.evaluation_batch_size = 256
    if args["runlocal"]:
        common.shrink(config, "tiny_imagen_sr")
    return config
