"""What the runs on ImageNet share: the papers' numbers, for a pod, one host or a glance.

Azizi et al. 2023 fine-tune a base for 210,000 steps with Adafactor and its super-resolution for
490,000 with Adam, batch 2048. Imagen (Saharia et al. 2022, appendix) has the learning rate, the
warm-up, the average of the weights, the text drop and Adam's moments. Clipping at a norm of 1 and
all intervals are ours.

Arguments of each config, as in `FILE.py:host,data=data/imagenet.zip`:

    host          one host with eight GPUs of 80 GB instead of 256 TPU v4: a quarter of the batch,
                  in parts; the learning rate stays
    data          a folder, or a zip, of `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`
    train, val    what these two folders in it are called
    runlocal      a few steps of a tiny network at small sizes, with a text encoder that needs no
                  download: it starts on a CPU

The expected times are FLOPs / 40% of the chips' bfloat16 peak: three forward passes an image, four
where the network computes its blocks again (`remat`).
"""

from ml_collections import ConfigDict

from configs import arguments

# Made by `python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-L --to=CACHE`.
IF_TEXT = dict(cache="data/imagenet_text", null="empty", shape=(77, 4096))
# The same with --max_length=128; zeros stand for no text.
IMAGEN_TEXT = dict(cache="data/imagenet_text128", null="zeros", shape=(128, 4096))
# The longest class name has 37 bytes; an end token follows.
LOCAL_TEXT = dict(
    max_length=38,
    seed=0,
    model=dict(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, dtype="float32"),
)


def imagen_stage(preset: str, schedule: str, size: int, low_size: int = 0) -> dict:
    """A stage of Imagen's kind."""
    return dict(
        size=size,
        low_size=low_size,
        channels=3,
        schedule=schedule,
        prediction="eps",
        learned_variance=False,
        upsampling="bilinear",
        unet=dict(preset=preset, remat=False, dtype="bfloat16"),
    )


def if_stage(preset: str, remat: bool, size: int, low_size: int = 0) -> dict:
    """A stage with the conventions of DeepFloyd IF's weights."""
    return dict(
        size=size,
        low_size=low_size,
        channels=3,
        schedule="squaredcos_cap_v2",
        prediction="eps",
        learned_variance=True,
        upsampling="bilinear_corners",
        unet=dict(preset=preset, remat=remat, dtype="bfloat16"),
    )


def if_sampler(num_steps: int) -> dict:
    """As the public pipelines draw."""
    return dict(
        name="ddpm", num_steps=num_steps, spacing="leading", logvar_coeff="learned", eta=0.0
    )


def adafactor() -> dict:
    """For the base: no weight decay, no first moment."""
    return dict(
        name="adafactor",
        learning_rate=1e-4,
        schedule="constant",
        warmup_steps=10_000,
        weight_decay=0.0,
        clip_norm=1.0,
    )


def adam() -> dict:
    """For super-resolution."""
    return dict(adafactor(), name="adam", b1=0.9, b2=0.999, eps=1e-8)


def training(
    arg: str,
    *,
    stage: dict,
    tiny: str,
    optimizer: dict,
    total_steps: int,
    text: dict,
    sampler: dict,
    guidance_weight: float,
    host_accumulation: int,
    weights: str = "",
    vlb_weight: float = 0.0,
    crop_size: int = 0,
) -> ConfigDict:
    """A run of imagen_ft.finetune.

    Args:
        arg: arguments of the config; see the module.
        stage: the network.
        tiny: preset that stands for it with `runlocal`.
        optimizer: see `adafactor` and `adam`.
        total_steps: length of the run.
        text: states of the class names.
        sampler: draws the pictures.
        guidance_weight: with which it does.
        host_accumulation: parts that a batch is taken in with `host`.
        weights: to start from; '' is from scratch.
        vlb_weight: of the bound that trains a learned variance.
        crop_size: of the random crops to train on; 0 is whole images.
    """
    args = arguments.parse(
        arg, data="data/imagenet", train="train", val="val", host=False, runlocal=False
    )
    source = dict(name="image_folder", path=args["data"])
    config = ConfigDict(
        dict(
            seed=0,
            class_names="imagenet",
            stage=stage,
            text=text,
            text_drop=0.1,
            train_source=dict(source, root=args["train"]),
            evaluation_source=dict(source, root=args["val"], per_class=10),
            evaluation_batch_size=2048,
            evaluation_draws=1,
            batch_size=2048,
            accumulation=1,
            crop_size=crop_size,
            flip=False,
            total_steps=total_steps,
            ema=dict(main=dict(decay=0.9999, schedule="warmup")),
            loss=dict(min_snr_gamma=0.0, vlb_weight=vlb_weight),
            init_from=weights,
            frozen=(),
            optimizer=optimizer,
            mesh=dict(data=-1, fsdp=8, tensor=1),
            log_every=100,
            evaluate_every=5000,
            checkpoint_every=2500,
            keep_checkpoints=2,
            profile=dict(start=0, steps=0),
            pictures_every=5000,
            pictures=dict(
                count=8,
                sampler=sampler,
                guidance_weight=guidance_weight,
                threshold_percentile=99.5,
            ),
            best=dict(metric="validation_loss", mode="min"),
        )
    )
    if args["host"]:
        config.batch_size, config.accumulation = 512, host_accumulation
        config.evaluation_batch_size = 256
    if args["runlocal"]:
        _shrink(config, tiny)
    return config


def _shrink(config: ConfigDict, tiny: str) -> None:
    """What the run is with `runlocal`."""
    # The tiny networks attend at a half or a quarter of the size.
    factor = 16 if config.crop_size else 8 if config.stage.low_size else 4
    for field in ("size", "low_size"):
        config.stage[field] //= factor
    config.crop_size //= factor
    config.stage.unet = dict(preset=tiny, remat=False, dtype="float32")
    config.text = ConfigDict(LOCAL_TEXT)
    config.init_from = ""
    config.mesh.fsdp = 1
    config.batch_size, config.accumulation, config.optimizer.warmup_steps = 8, 1, 2
    config.evaluation_source.per_class, config.evaluation_batch_size = 1, 100
    config.total_steps, config.log_every, config.evaluate_every = 4, 1, 4
    config.checkpoint_every, config.pictures_every = 2, 4
    config.pictures.count, config.pictures.sampler.num_steps = 2, 2
