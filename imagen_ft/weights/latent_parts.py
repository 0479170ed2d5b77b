"""What the parts of a Stable Diffusion must agree on: latents, text states, noise schedule."""

from collections.abc import Mapping
from typing import Any

from classifiers.models.clip_text import ClipTextEncoder
from imagen_ft.models.autoencoder import Autoencoder
from imagen_ft.models.latent_unet import LatentUNet
from launch.errors import InputError

# sqrt(beta) is linear in t: diffusers' name for the schedule of Rombach et al. 2022, and ours.
SCHEDULE = "scaled_linear"
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# Our field: (diffusers' field, its default).
_NUMBERS = {
    "num_train_timesteps": ("num_train_timesteps", 1000),
    "beta_first": ("beta_start", 1e-4),
    "beta_last": ("beta_end", 0.02),
    "zero_terminal_snr": ("rescale_betas_zero_snr", False),
}


def is_latent_scheduler(config: Mapping[str, Any]) -> bool:
    """Whether a `scheduler_config.json` is of Stable Diffusion's kind."""
    return config.get("beta_schedule") == SCHEDULE


def latent_settings(config: Mapping[str, Any], where: Any) -> dict[str, Any]:
    """The `schedule` (for `make_schedule`) and `prediction` of a `scheduler_config.json`.

    These describe the weights, not a sampler: any scheduler's file will do. Raises `InputError`
    naming the first field whose value is not implemented.
    """
    # 1. What the network predicts, and the kind of schedule.
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in tuple(_PREDICTIONS):
        raise InputError(
            f"{where}: prediction_type must be {' or '.join(_PREDICTIONS)}, got {prediction!r}; "
            "use the scheduler that came with these weights"
        )
    if not is_latent_scheduler(config) or config.get("trained_betas") is not None:
        field = "trained_betas" if is_latent_scheduler(config) else "beta_schedule"
        raise InputError(
            f"{where}: {field} is {config.get(field)!r}, only {SCHEDULE!r} without trained_betas "
            "is implemented; use the scheduler of a Stable Diffusion"
        )
    # 2. The schedule's numbers. A bool is an int in Python, so types are compared exactly.
    schedule = {"name": SCHEDULE}
    for ours, (theirs, default) in _NUMBERS.items():
        value = config.get(theirs, default)
        sound = type(value) in (int, float) and value > 0
        if isinstance(value, bool) if isinstance(default, bool) else sound:
            schedule[ours] = value
            continue
        kind = "True or False" if isinstance(default, bool) else "a number above 0"
        raise InputError(f"{where}: {theirs} must be {kind}, got {value!r}; use another scheduler")
    return dict(schedule=schedule, prediction=_PREDICTIONS[prediction])


def check_parts(
    models: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: Any
) -> None:
    """Raises `InputError` unless a latent U-Net takes what the other parts make.

    `models` are by part; absent ones are not checked. `shapes` are those of the U-Net's tensors, by
    diffusers' names.
    """
    # 1. Latents.
    unet, autoencoder = models.get("unet"), models.get("vae")
    if not isinstance(unet, LatentUNet):
        return
    channels = shapes["conv_in.weight"][1]
    if isinstance(autoencoder, Autoencoder) and autoencoder.latent_channels != channels:
        raise InputError(
            f"{where}: the U-Net takes latents of {channels} channels, the auto-encoder makes "
            f"{autoencoder.latent_channels}; use the vae that came with these weights"
        )
    # 2. Text states; SDXL's two encoders are concatenated.
    names = ["text_encoder", "text_encoder_2"] if unet.size_embedding_dim else ["text_encoder"]
    encoders = [models[name] for name in names if isinstance(models.get(name), ClipTextEncoder)]
    width = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    if len(encoders) == len(names) and sum(encoder.width for encoder in encoders) != width:
        raise InputError(
            f"{where}: the U-Net takes text states {width} wide, the text encoders make "
            f"{' + '.join(str(encoder.width) for encoder in encoders)}; use those that came with "
            "these weights"
        )
