r"""Generates a synthetic ImageNet with Stable Diffusion as published, without training it.

python -m imagen_ft.generate --config=configs/imagenet/generate_sd.py:model=sdxl \
    --workdir=data/imagenet_sdxl

First import the weights, as below. `--worker=I --num_workers=N` shares the generation among N
machines or jobs.

    python -m imagen_ft.weights --from=diffusers:stabilityai/stable-diffusion-xl-base-1.0 \
        --to=weights/sdxl

Arguments after the file's name:

    model         sd15 (512 px, the default), sd21 (768 px) or sdxl (1024 px); all are stored at 256
    weights       their folder; weights/sd15 and so on by default
    k             size of the synthetic set, in real sets
    data, train,  the real images, as in `common.py`; only counted by class
    tfds
    runlocal      one image per class from tiny networks, 16 px, which `weights` must name

Guidance 2.0 and 50 steps are from "Diversify, Don't Fine-Tune" (2023), which has many prompts per
class; here the prompt is "a photo of a" and the class name.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: GPUs or TPUs with 40 GB; with more, raise `--config.stages.sd.batch_size`.
`python -m tests.benchmarks.costs` prints chip hours and money. Expected: k * 1.28M images in shards
of about 150 MB, k * 50 GB in all.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet import common
from configs.imagenet.images import DATA
from configs.stable_diffusion import common as stable_diffusion

BATCH_SIZES = dict(sd15=8, sd21=2, sdxl=4)


def get_config(arg=""):
    args = arguments.parse(
        arg,
        model="sd15",
        weights="",
        k=1,
        data=DATA,
        train="train",
        tfds="",
        runlocal=False,
    )
    name, runlocal = args["model"], args["runlocal"]
    stable_diffusion.check(name)
    weights = args["weights"] or f"weights/{name}"

    config = ConfigDict()
    config.name = f"imagenet_{name}"
    config.seed = 0
    config.copies = args["k"]
    config.class_names = "imagenet"
    config.real_source = common.train_source(args)
    config.text = stable_diffusion.text(name, weights, runlocal=runlocal)
    config.text.template = "a photo of a {}"
    config.negative_prompt = ""  # what guidance leads away from; '' is no text
    config.stages = dict(
        sd=dict(
            run=f"diffusers:{weights}",
            stage=stable_diffusion.stage(name, runlocal),
            sampler=stable_diffusion.sampler(),
            guidance_weight=2.0,
            stored_size=0 if runlocal else 256,  # filtered before pixels are dropped
            batch_size=BATCH_SIZES[name],  # what fits into 40 GB, by --dry_run
        )
    )
    config.batch_size = 16
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.images_per_shard = 0  # shards of about 150 MB
    config.encoding = dict(size=0, format="jpeg", quality=95)
    if runlocal:
        config.real_source.per_class = 1
        config.encoding = dict(size=0, format="png")
        config.stages.sd.sampler.num_steps = 2
    return config
