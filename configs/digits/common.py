"""What the runs on the embedded digits share."""

from ml_collections import ConfigDict

CLASS_NAMES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip

# One thread per program: small networks gain little from more, and the number of threads decides
# how sums are rounded, so results do not depend on the machine's cores. Programs this small take
# longer to compile than to run, so the compiler optimises less.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=1",
}


def text() -> dict:
    """A T5 encoder with fixed random weights; the longest name is five bytes and an end token."""
    model = dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dtype="float32")
    return dict(max_length=6, seed=0, model=model)


def _unet(width: int) -> dict:
    """One level, with attention in the middle block only."""
    return dict(
        block_out_channels=(width,),
        layers_per_block=1,
        attention=(False,),
        cross_attention_dim=width,
        attention_head_dim=16,
        num_groups=8,
        cross_num_groups=8,
        pooling_heads=4,
        dtype="float32",
    )


def base_stage() -> dict:
    """4x4 digits from noise."""
    return dict(size=4, low_size=0, channels=1, schedule="cosine", prediction="v", unet=_unet(48))


def super_resolution_stage() -> dict:
    """8x8 digits from noise and 4x4 digits."""
    return dict(size=8, low_size=4, channels=1, schedule="cosine", prediction="v", unet=_unet(32))


def cascade() -> ConfigDict:
    """The fine-tuned stages and how they are sampled."""
    config = ConfigDict()
    config.seed = 0
    config.class_names = CLASS_NAMES
    config.text = text()
    config.negative_prompt = ""  # what guidance leads away from; '' is no text
    config.stages = dict(
        base4=dict(
            run="runs/digits/finetune_base4",
            stage=base_stage(),
            sampler=dict(name="ddpm", num_steps=64, logvar_coeff=0.5, eta=0.0),
            guidance_weight=1.0,
            threshold_percentile=100.0,
        ),
        sr8=dict(
            run="runs/digits/finetune_sr8",
            stage=super_resolution_stage(),
            sampler=dict(name="ddpm", num_steps=32, logvar_coeff=0.5, eta=0.0),
            guidance_weight=1.0,
            threshold_percentile=100.0,
            noise_augmentation=0.0,  # t of the low-resolution image
        ),
    )
    config.batch_size = 150
    return config
