"""Draws images with DeepFloyd IF's public weights, at 64 and 256 pixels.

python -m imagen_ft.sample --config=configs/deepfloyd/sample.py --workdir=runs/if --prompt=goldfish

First, once, import the weights and embed the prompts:

    weights="python -m imagen_ft.weights"
    $weights --from=deepfloyd:DeepFloyd/IF-I-M-v1.0 --to=weights/IF-I-M
    $weights --from=deepfloyd:DeepFloyd/IF-II-M-v1.0 --to=weights/IF-II-M --part=unet
    python -m imagen_ft.text --prompts=prompts.txt --weights=weights/IF-I-M --to=data/text

`:hub` needs neither: it reads half-precision weights from the Hugging Face Hub (accept the licence
of DeepFloyd IF there and log in), and T5 embeds the prompts and is freed before the rest is loaded;
11 GB are downloaded once. `--dry_run` shows how much memory each phase takes.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU or TPU with 16 GB. Expected: samples.png. `size=l` and `size=xl` use the larger
models of those names; `runlocal` takes two steps per stage. The dtype "auto" is bfloat16, but
float16 on NVIDIA's GPUs before Ampere (T4, V100), which are slow in bfloat16.
"""

from ml_collections import ConfigDict

from configs import arguments

FIRST = {"m": "if_i_m", "l": "if_i_l", "xl": "if_i_xl"}
SECOND = {"m": "if_ii_m", "l": "if_ii_l", "xl": "if_ii_l"}


def get_config(arg=""):
    args = arguments.parse(arg, runlocal=False, size="m", hub=False)
    if args["size"] not in FIRST:
        raise ValueError(f"size must be one of {', '.join(FIRST)}, got {args['size']}")
    first, second = FIRST[args["size"]], SECOND[args["size"]]

    config = ConfigDict()
    config.seed = 0
    config.class_names = ()
    config.text = dict(cache="data/text", null="empty", shape=(77, 4096))
    config.negative_prompt = ""  # what guidance leads away from; '' is no text
    # IFPipeline's and IFSuperResolutionPipeline's defaults.
    config.stages = dict(
        base64=dict(
            run="weights/" + first.replace("if_i_", "IF-I-").upper(),
            stage=dict(
                size=64,  # pixels
                low_size=0,  # from noise alone
                channels=3,
                schedule="squaredcos_cap_v2",
                learned_variance=True,
                unet=dict(preset=first, dtype="auto"),
            ),
            sampler=dict(
                name="ddpm", num_steps=100, spacing="leading", logvar_coeff="learned", eta=0.0
            ),
            guidance_weight=7.0,
            threshold_percentile=95.0,
            threshold_maximum=1.5,
        ),
        sr256=dict(
            run="weights/" + second.replace("if_ii_", "IF-II-").upper(),
            stage=dict(
                size=256,
                low_size=64,
                channels=3,
                schedule="squaredcos_cap_v2",
                learned_variance=True,
                upsampling="bilinear_corners",
                unet=dict(preset=second, dtype="auto"),
            ),
            sampler=dict(
                name="ddpm", num_steps=50, spacing="leading", logvar_coeff="learned", eta=0.0
            ),
            guidance_weight=4.0,
            threshold_percentile=95.0,
            threshold_maximum=1.0,
            noise_augmentation=0.251,  # t of noise level 250: (250 + 1) / 1000
            batch_size=4,
        ),
    )
    if args["hub"]:
        weights = f"DeepFloyd/IF-I-{args['size'].upper()}-v1.0"
        config.text = dict(
            weights=weights,
            variant="fp16",
            dtype="auto",
            max_length=77,
            null="empty",
            shape=(77, 4096),
            clean_caption=True,  # as IF's pipelines do; a cache records how it was made
            resident=False,  # T5 is freed before the stages are loaded
        )
        for stage in config.stages.values():
            name = stage.run.removeprefix("weights/")
            stage.run, stage.variant = f"deepfloyd:DeepFloyd/{name}-v1.0", "fp16"
    config.batch_size = 16
    config.images_per_prompt = 4
    config.show_stages = False
    if args["runlocal"]:
        for stage in config.stages.values():
            stage.sampler.num_steps = 2
    return config
