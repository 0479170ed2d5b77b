r"""Generates a synthetic ImageNet: for every class as many images as the real one has, times k.

python -m imagen_ft.generate --config=configs/imagenet/generate.py:k=10 \
    --workdir=data/imagenet_synthetic

First train the two stages, as below. `--worker=I --num_workers=N` shares the generation among N
machines or jobs, each with all its chips.

    python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py --workdir=runs/imagenet/if_i_l
    python -m imagen_ft.finetune --config=configs/imagenet/if_ii_l.py \
        --workdir=runs/imagenet/if_ii_l

Arguments after the file's name:

    cascade       if (DeepFloyd IF-L, the default) or imagen
    size          64, 256 or, for imagen, 1024, which is stored at 256
    k             size of the synthetic set, in real sets
    data, train,  the real images, as in `common.py`; only counted by class
    tfds
    runlocal      one image per class at an eighth of the sizes, from tiny stages that were trained
                  with `runlocal` too

For imagen, guidance, variances, steps (1000, 1000 and 32) and noise augmentation are those that
Azizi et al. 2023 chose. IF keeps its learned variance and takes 100 and 50 steps.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: `python -m tests.benchmarks.costs` prints chip hours and money. Expected: k * 1.28M images
in shards of about 150 MB: k * 12 GB at 64 px, about k * 50 GB at 256 px.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet import common, if_i_l, if_ii_l, imagen_base64, imagen_sr256, imagen_sr1024
from configs.imagenet.images import DATA

# The stages of each cascade, by image size: the config that trains the stage, and how to sample it.
CASCADES = {
    "if": {
        64: dict(
            name="if_i_l",
            training=if_i_l,
            guidance_weight=1.25,
            thresholds=dict(threshold_percentile=95.0, threshold_maximum=1.5),
            sampler=dict(
                name="ddpm", num_steps=100, spacing="leading", logvar_coeff="learned", eta=0.0
            ),
        ),
        256: dict(
            name="if_ii_l",
            training=if_ii_l,
            guidance_weight=1.0,
            thresholds=dict(threshold_percentile=95.0, threshold_maximum=1.0),
            sampler=dict(
                name="ddpm", num_steps=50, spacing="leading", logvar_coeff="learned", eta=0.0
            ),
        ),
    },
    "imagen": {
        64: dict(
            name="imagen_base64",
            training=imagen_base64,
            guidance_weight=1.25,
            sampler=dict(name="ddpm", num_steps=1000, logvar_coeff=0.0, eta=0.0),
        ),
        256: dict(
            name="imagen_sr256",
            training=imagen_sr256,
            guidance_weight=1.0,
            sampler=dict(name="ddpm", num_steps=1000, logvar_coeff=0.1, eta=0.0),
        ),
        1024: dict(
            name="imagen_sr1024",
            training=imagen_sr1024,
            guidance_weight=1.0,
            sampler=dict(name="ddim", num_steps=32, logvar_coeff=0.0, eta=0.0),
        ),
    },
}


def get_config(arg=""):
    args = arguments.parse(
        arg,
        cascade="if",
        size=256,
        k=1,
        data=DATA,
        train="train",
        tfds="",
        runlocal=False,
    )
    if args["cascade"] not in CASCADES:
        raise ValueError(f"cascade must be one of {', '.join(CASCADES)}, got {args['cascade']}")
    cascade = CASCADES[args["cascade"]]
    size = args["size"]
    if size not in cascade:
        raise ValueError(f"size must be one of {', '.join(map(str, cascade))}, got {size}")
    local = "runlocal" if args["runlocal"] else ""

    config = ConfigDict()
    config.name = f"imagenet_{args['cascade']}_{size}"
    config.seed = 0
    config.copies = args["k"]
    config.class_names = "imagenet"
    config.real_source = common.train_source(args)
    # The same for all stages.
    config.text = cascade[64]["training"].get_config(local).text
    config.negative_prompt = ""  # what guidance leads away from; '' is no text
    config.stages = {
        stage["name"]: dict(
            run=f"runs/imagenet/{stage['name']}",
            stage=stage["training"].get_config(local).stage,
            sampler=stage["sampler"],
            guidance_weight=stage["guidance_weight"],
            # For Imagen its paper's: the percentile of |x_0| at which dynamic thresholding clips.
            **stage.get("thresholds", dict(threshold_percentile=99.5)),
            noise_augmentation=0.0,  # t of the low-resolution image
        )
        for pixels, stage in cascade.items()
        if pixels <= size
    }
    config.batch_size = 256
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.images_per_shard = 0  # shards of about 150 MB
    if size == 64:
        config.encoding = dict(size=0, format="png")  # at their own size
    else:
        config.encoding = dict(size=256, format="jpeg", quality=95)
    if args["cascade"] == "if" and not args["runlocal"]:
        for stage in config.stages.values():
            stage.stage.unet.dtype = "auto"  # bfloat16; on older GPUs float16
    if args["runlocal"]:
        config.batch_size, config.real_source.per_class = 100, 1
        config.encoding = dict(size=0, format="png")
        for stage in config.stages.values():
            stage.sampler.num_steps = 2
    return config
