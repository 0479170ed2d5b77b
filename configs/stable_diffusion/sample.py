"""Draws images with Stable Diffusion's public weights, at 512, 768 or 1024 pixels.

python -m imagen_ft.sample --config=configs/stable_diffusion/sample.py --workdir=runs/sd \
    --prompt="a goldfish in a bowl"

First import the weights once; `:hub` instead reads half-precision weights from the Hugging Face
Hub.

    python -m imagen_ft.weights --from=diffusers:stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --to=weights/sd15

`model=sd21` (768 px, v prediction) and `model=sdxl` (1024 px, two text encoders) are the others.
A diffusers folder, or an import of it, needs no config: `Cascade.load("weights/sd15")` takes all
from its files. `--config.stages.sd.stored_size=256` shrinks the images with a filter;
`--config.stages.sd.sampler.name=dpmpp --config.stages.sd.sampler.num_steps=20` takes fewer steps.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU or TPU with 16 GB, 24 GB for sdxl. Expected: samples.png. `--dry_run` shows how
much memory each phase takes. `runlocal` is for tests: tiny networks, with weights from
--config...run.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.stable_diffusion import common


def get_config(arg=""):
    args = arguments.parse(arg, runlocal=False, model="sd15", hub=False)
    name, runlocal = args["model"], args["runlocal"]
    common.check(name)
    weights, variant = f"weights/{name}", None
    if args["hub"]:
        weights, variant = common.MODELS[name]["weights"], "fp16"

    config = ConfigDict()
    config.seed = 0
    config.class_names = ()
    config.text = common.text(name, weights, variant, runlocal)
    config.negative_prompt = ""  # what guidance leads away from; '' is no text
    config.stages = dict(
        sd=dict(
            run=f"diffusers:{weights}",
            variant=variant,
            stage=common.stage(name, runlocal),
            sampler=common.sampler(),
            guidance_weight=common.MODELS[name]["guidance_weight"],
            stored_size=0,  # the size they are drawn at
            batch_size=2 if name == "sd15" else 1,  # what fits into the memory named above
        )
    )
    config.batch_size = 4
    config.images_per_prompt = 4
    config.show_stages = False
    if runlocal:
        config.stages.sd.sampler.num_steps = 2
    return config
