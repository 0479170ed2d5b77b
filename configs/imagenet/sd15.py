r"""Fine-tunes Stable Diffusion 1.5 on ImageNet at 512x512, on its latents.

python -m imagen_ft.finetune --config=configs/imagenet/sd15.py \
    --workdir=runs/imagenet/sd15

First, once:

    python -m imagen_ft.weights \
        --from=diffusers:stable-diffusion-v1-5/stable-diffusion-v1-5 --to=weights/sd15
    python -m imagen_ft.text --class_names=imagenet --template="a photo of a {}" \
        --weights=weights/sd15 --to=data/imagenet_text_sd15

The auto-encoder and the text encoder stay unchanged; images are encoded within the step. With
`--config.latents.cache=data/imagenet_latents_sd15` they are encoded once, before the first step,
which takes 168 GB including mirrored images; other runs can read them too. Sample and generate as
with any other run: `generate_sd.py` has the published weights, `--config.stages.sd.run` names
others.

Arguments after the file's name:

    weights       their folder; weights/sd15 and so on by default
    data, train,  the images, as in `common.py`
    val, tfds
    runlocal      a few steps of tiny networks at 16 px, with a random auto-encoder

None of the papers fine-tunes it: "Diversify, Don't Fine-Tune" (2023) draws with it as published,
and Azizi et al. (2023) fine-tune Imagen. Text drop and AdamW are the model card's, which trains
from scratch in batches of 2048 at a rate of 1e-4; a quarter of that batch, a tenth of that rate and
eight epochs are our own.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one host with eight GPUs of 80 GB, or 32 TPU v4; not run yet.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet import common
from configs.imagenet.images import DATA
from configs.measures import while_training
from configs.stable_diffusion import common as stable_diffusion


def get_config(arg="", name="sd15"):
    args = arguments.parse(
        arg, weights=f"weights/{name}", data=DATA, train="train", val="val", tfds="", runlocal=False
    )

    config = ConfigDict()
    config.seed = 0
    config.batch_size = 512
    config.total_steps = 20_000
    config.accumulation = 4  # microbatches per step

    config.class_names = "imagenet"
    config.train_source = common.train_source(args)
    config.crop_size = 0  # whole images
    config.flip = True
    # Tokens, channels; the empty prompt stands for no text.
    config.text = dict(
        cache=f"data/imagenet_text_{name}",
        null="empty",
        template="a photo of a {}",
        shape=stable_diffusion.MODELS[name]["shape"],
    )
    config.text_drop = 0.1

    config.stage = stable_diffusion.stage(name)
    config.stage.unet.update(remat=True, dtype="bfloat16")
    config.stage.autoencoder.dtype = "bfloat16"
    # Draw latents from the auto-encoder's distribution instead of its mean; `cache` may name a
    # folder to store them in.
    config.latents = dict(sample=True, cache="")
    config.init_from = f"diffusers:{args['weights']}"
    config.frozen = ()
    config.loss = dict(min_snr_gamma=0.0, vlb_weight=0.0)
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-5,
        schedule="constant",
        warmup_steps=500,
        weight_decay=1e-2,
        clip_norm=1.0,
    )
    config.ema = dict(main=dict(decay=0.9999, schedule="warmup"))
    config.mesh = dict(data=-1, fsdp=8, tensor=1)  # parameters split over 8 chips

    config.evaluation_source = common.evaluation_source(args)
    config.evaluation_batch_size = 128
    config.evaluation_draws = 1  # of noise per image
    config.log_every = 100  # steps, like the other intervals
    config.evaluate_every = 2000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
    config.best = dict(metric="validation_loss", mode="min")
    config.pictures_every = 2000
    config.pictures = dict(
        count=8, sampler=stable_diffusion.sampler(), guidance_weight=2.0, stored_size=256
    )
    config.evaluation_metric = while_training(config.pictures)
    config.profile = dict(start=0, steps=0)
    if args["runlocal"]:
        common.shrink(config, f"tiny_{name}")
        config.stage.autoencoder = dict(preset="tiny_vae", weights="new", dtype="float32")
        config.pictures.stored_size = config.evaluation_metric.sampling.stored_size = 0
    return config
