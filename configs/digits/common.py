"""What the runs on the embedded digits share."""

from ml_collections import ConfigDict

CLASS_NAMES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip


def text() -> ConfigDict:
    """A T5 encoder with fixed random weights; the longest name has five bytes and an end token."""
    model = dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    return ConfigDict(dict(max_length=6, seed=0, model=model))


def unet() -> ConfigDict:
    return ConfigDict(
        dict(
            block_out_channels=(32, 64),
            layers_per_block=2,
            attention=(False, True),
            cross_attention_dim=64,
            attention_head_dim=16,
            num_groups=8,
            pooling_heads=4,
        )
    )


def base_stage() -> ConfigDict:
    return ConfigDict(
        dict(size=4, low_size=0, channels=1, schedule="cosine", unet=unet().to_dict())
    )


def super_resolution_stage() -> ConfigDict:
    return ConfigDict(
        dict(size=8, low_size=4, channels=1, schedule="cosine", unet=unet().to_dict())
    )


def training(stage: ConfigDict, split: str) -> ConfigDict:
    """The fields of every run of imagen_ft.finetune, before the run sets its own."""
    config = ConfigDict()
    config.seed = 0
    config.class_names = CLASS_NAMES
    config.stage = stage
    config.text = text()
    config.text_drop = 0.1
    config.train_source = dict(name="digits", split=split)
    config.evaluation_source = dict(name="digits", split="validation")
    config.evaluation_draws = 4
    config.batch_size = 64
    config.total_steps = 1000
    config.ema_decay = 0.99
    config.init_from = ""
    config.optimizer = dict(
        name="adam",
        learning_rate=1e-3,
        schedule="constant",
        warmup_steps=50,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.log_every = 50
    config.evaluate_every = 250
    config.checkpoint_every = 500
    return config
