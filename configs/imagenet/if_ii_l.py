r"""Fine-tunes DeepFloyd IF-II-L on ImageNet, 64 -> 256.

python -m imagen_ft.finetune --config=configs/imagenet/if_ii_l.py \
    --workdir=runs/imagenet/if_ii_l

First, once:

    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-II-L-v1.0 \
        --to=weights/IF-II-L --part=unet
    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-I-L-v1.0 --to=weights/IF-I-L
    python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-L \
        --to=data/imagenet_text

`common.py` describes the arguments (`:host`, `:runlocal`, `:data=DIR`, ...). Without the hardware,
`--dry_run` prints the network, and `--preflight=v4:4x4x16` what a chip needs.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: 256 TPU v4, 0.87 s a step, 4.9 days (11.9 TFLOP an image at 40% of the peak). `:host`, 8
H100: 1.93 s a step, 11 days. By `--preflight` (45 minutes, over 18 GB) a v4 chip needs 10.8 GiB of
its 32, and the compiler estimates 0.577 s a step, half of it in convolutions; 0.316 s is the least
for its FLOPs.
"""

from ml_collections import ConfigDict

from configs.imagenet import common
from configs.measures import while_training


def get_config(arg=""):
    args = common.parse(arg)

    config = ConfigDict()
    config.seed = 0
    # Azizi et al. 2023, section 4.1.
    config.batch_size = 2048
    config.total_steps = 490_000
    config.accumulation = 1  # microbatches per step

    config.class_names = "imagenet"
    config.train_source = common.train_source(args)
    config.crop_size = 0  # whole images
    config.flip = False
    # Tokens, channels; the empty prompt stands for no text.
    config.text = dict(cache="data/imagenet_text", null="empty", shape=(77, 4096))
    config.text_drop = 0.1  # share of prompts replaced by no text (Saharia et al. 2022)

    config.stage = dict(
        size=256,  # pixels
        low_size=64,
        channels=3,
        schedule="squaredcos_cap_v2",
        prediction="eps",
        learned_variance=True,
        upsampling="bilinear_corners",
        unet=dict(preset="if_ii_l", remat=True, dtype="bfloat16"),
    )
    config.init_from = "weights/IF-II-L"
    config.frozen = ()
    # lambda of Nichol & Dhariwal 2021, section 3.1, for the learned variance.
    config.loss = dict(min_snr_gamma=0.0, vlb_weight=0.001)
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
        # The public pipeline's sampler.
        sampler=dict(name="ddpm", num_steps=50, spacing="leading", logvar_coeff="learned", eta=0.0),
        guidance_weight=1.0,
        threshold_percentile=95.0,  # the public pipeline's, like the next one
        threshold_maximum=1.0,
    )
    config.evaluation_metric = while_training(config.pictures)
    config.profile = dict(start=0, steps=0)
    if args["host"]:
        config.batch_size, config.accumulation = 512, 8
        config.evaluation_batch_size = 256
    if args["runlocal"]:
        common.shrink(config, "tiny_if_ii")
    return config
