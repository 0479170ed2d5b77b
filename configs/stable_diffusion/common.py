"""Stable Diffusion's stages and text encoders, as in their public configurations."""

# By model: the U-Net's weights, size of the latents and prediction; the auto-encoder; the shape of
# embedded prompts (tokens, channels); and diffusers' default guidance weight.
MODELS = {
    "sd15": dict(
        weights="stable-diffusion-v1-5/stable-diffusion-v1-5",
        size=64,
        prediction="eps",
        autoencoder="sd_vae",
        shape=(77, 768),
        guidance_weight=7.5,
    ),
    "sd21": dict(
        weights="stabilityai/stable-diffusion-2-1",
        size=96,
        prediction="v",
        autoencoder="sd_vae",
        shape=(77, 1024),
        guidance_weight=7.5,
    ),
    "sdxl": dict(
        weights="stabilityai/stable-diffusion-xl-base-1.0",
        size=128,
        prediction="eps",
        autoencoder="sdxl_vae",
        shape=(78, 2048),  # 77 tokens, and one more row for the pooled text
        guidance_weight=5.0,
    ),
}
TINY = dict(
    sd15=dict(unet="tiny_sd15", shape=(12, 16)),
    sd21=dict(unet="tiny_sd21", shape=(12, 16)),
    sdxl=dict(unet="tiny_sdxl", shape=(13, 16)),
)


def check(name):
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name}")


def stage(name, runlocal=False):
    """The fields of a denoiser; with `runlocal` a tiny one of the same kind, for 16 px."""
    model = MODELS[name]
    pooled_width = 0
    if name == "sdxl":
        pooled_width = 8 if runlocal else 1280
    return dict(
        size=8 if runlocal else model["size"],  # of the latents
        low_size=0,  # from noise alone
        channels=4,
        schedule="scaled_linear",
        prediction=model["prediction"],
        pooled_width=pooled_width,  # of the pooled text; 0 if the network takes none
        unet=dict(
            preset=TINY[name]["unet"] if runlocal else name,
            dtype="float32" if runlocal else "auto",
        ),
        autoencoder=dict(
            preset="tiny_vae" if runlocal else model["autoencoder"],
            weights="",  # beside the network's own
            dtype="float32" if runlocal else "auto",
        ),
    )


def sampler():
    """DDIM as in the public files, with diffusers' default of 50 steps."""
    return dict(
        name="ddim",
        num_steps=50,
        spacing="leading_one",
        keeps_noise=True,
        eta=0.0,
        logvar_coeff=0.0,  # of ddpm
    )


def text(name, weights, variant=None, runlocal=False):
    """A pipeline's CLIP text encoders, which embed a prompt when it is first used."""
    return dict(
        weights=weights,
        variant=variant,
        dtype="float32" if runlocal else "auto",
        max_length=77,
        null="zeros" if name == "sdxl" else "empty",
        template="{}",
        shape=(TINY if runlocal else MODELS)[name]["shape"],
        resident=False,  # freed before the stages are loaded
    )
