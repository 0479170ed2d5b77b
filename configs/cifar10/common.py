"""What the runs on CIFAR-10's photographs share."""

from ml_collections import ConfigDict

from configs import arguments

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# Every name of a class has at most ten bytes; an end token follows.
TEXT = dict(
    max_length=11,
    seed=0,
    model=dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dtype="float32"),
)


def _unet(layers: int, attention: tuple[bool, ...], runlocal: bool) -> dict:
    return dict(
        block_out_channels=(16, 32, 32) if runlocal else (64, 128, 256),
        layers_per_block=1 if runlocal else layers,
        attention=attention,
        cross_attention_dim=32 if runlocal else 256,
        attention_head_dim=16 if runlocal else 64,
        num_groups=8 if runlocal else 32,
        cross_num_groups=8 if runlocal else 32,
        pooling_heads=4,
        dtype="float32" if runlocal else "bfloat16",
    )


def base_stage(runlocal: bool) -> dict:
    """16x16 photographs from noise."""
    unet = _unet(2, (False, True, True), runlocal)
    return dict(size=16, low_size=0, channels=3, schedule="cosine", prediction="eps", unet=unet)


def super_resolution_stage(runlocal: bool) -> dict:
    """32x32 photographs from noise and a 16x16 one."""
    unet = _unet(1, (False, False, True), runlocal)
    return dict(size=32, low_size=16, channels=3, schedule="cosine", prediction="eps", unet=unet)


def sampling(stage: str, runlocal: bool) -> dict:
    """How images of the stage 'base16' or 'sr32' are drawn."""
    base = stage == "base16"
    steps = 2 if runlocal else 128 if base else 64
    return dict(
        sampler=dict(name="ddpm", num_steps=steps, logvar_coeff=0.0 if base else 0.1, eta=0.0),
        guidance_weight=1.25 if base else 1.0,
        threshold_percentile=99.5,
    )


def training(arg: str, stage: str, total_steps: int) -> ConfigDict:
    """A run of imagen_ft.finetune, from scratch.

    Args:
        arg: arguments of the config: `runlocal`; `data`, a folder or zip with `root/train` in it,
            which holds the folders of the classes.
        stage: 'base16' or 'sr32'.
        total_steps: length of the run.
    """
    args = arguments.parse(
        arg, data="data/cifar10_sample.zip", root="cifar10_sample", runlocal=False
    )
    runlocal = args["runlocal"]
    network = base_stage if stage == "base16" else super_resolution_stage
    root = f"{args['root']}/train" if args["root"] else "train"
    # The test images are for the classifiers' last comparison.
    source = dict(name="image_folder", path=args["data"], root=root, held_out=50)
    config = ConfigDict(
        dict(
            seed=0,
            class_names=CLASS_NAMES,
            stage=network(runlocal),
            text=TEXT,
            text_drop=0.1,
            train_source=dict(source, split="train"),
            evaluation_source=dict(source, split="validation"),
            evaluation_batch_size=512,
            evaluation_draws=2,
            batch_size=128,
            accumulation=1,
            crop_size=0,
            flip=True,
            total_steps=total_steps,
            ema=dict(main=dict(decay=0.999, schedule="warmup")),
            loss=dict(min_snr_gamma=0.0, vlb_weight=0.0),
            init_from="",
            frozen=(),
            optimizer=dict(
                name="adam",
                learning_rate=5e-4,
                schedule="cosine",
                warmup_steps=500,
                weight_decay=0.0,
                clip_norm=1.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            log_every=100,
            evaluate_every=2000,
            checkpoint_every=2000,
            keep_checkpoints=2,
            profile=dict(start=0, steps=0),
            pictures_every=2000,
            pictures=dict(count=10, **sampling(stage, runlocal)),
            best=dict(metric="validation_loss", mode="min"),
        )
    )
    if runlocal:
        config.total_steps, config.optimizer.warmup_steps, config.batch_size = 20, 2, 16
        config.log_every, config.evaluate_every, config.checkpoint_every = 5, 10, 10
        config.pictures_every, config.evaluation_draws = 20, 1
    return config
