"""What the two sweeps of Azizi et al. 2023 on ImageNet share (section 4.2, figures 3 and 4).

Arguments of both, as in `FILE.py:images=10000,weights=FILE`:

    images    per point, 50,000 as in the paper
    weights   Inception's, if they are not where torch-fidelity or pytorch-fid put them
    cas       one point per guidance weight, with the best of the other settings and as many images
              as there are real ones; `--cas` then trains a ResNet-50 on each
    data, train, val, tfds   the real images, as in `images.py`; points are compared with val's
    runlocal  two points of a few images from a tiny network
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet import generate
from configs.imagenet.images import real_images
from configs.measures import set_measures

_TRAIN = 1_281_167  # images of the training set


def parse(arg: str, **defaults) -> dict:
    """The arguments of a config, see the module."""
    return arguments.parse(
        arg,
        images=50_000,
        weights="",
        cas=False,
        data="data/imagenet",
        train="train",
        val="val",
        tfds="",
        runlocal=False,
        **defaults,
    )


def sweep(args: dict, stage: str, size: int, grid: dict, chosen: dict) -> ConfigDict:
    """The config of a sweep over `grid` for a stage that draws images of `size` pixels.

    `chosen` is the paper's choice of everything but the guidance weight.
    """
    config = ConfigDict()
    local = ",runlocal" if args["runlocal"] else ""
    config.cascade = generate.get_config(f"cascade=imagen,size={size}{local}")
    config.cascade.real_source = real_images(args, "train")
    config.cascade.images_per_prompt = 1  # for imagen_ft.sample
    config.cascade.show_stages = True
    config.stage = stage
    config.grid = grid
    config.num_images = args["images"]
    config.labels = "balanced"
    config.low = {}  # such as dict(source=...): real images to enlarge

    train, val = real_images(args, "train"), real_images(args, "val")
    config.reference = dict(
        statistics="",  # an npz to use instead of the source
        source=dict(source=val, square=size),
        held_out=dict(source=dict(train, per_class=50), square=size),
    )
    config.extractor = dict(name="inception", path=args["weights"], rule="tf1")
    config.batch_size = 256
    set_measures(
        config,
        subset_size=1000,
        without=("spatial_frechet", "kernel", "density_coverage", "classes_apart", "copying"),
    )
    config.choose_by = "frechet"
    config.halving = dict(measure="frechet", factor=3, finalists=3)  # with --budget
    config.cas = {}
    if args["cas"]:
        config.grid = dict(
            guidance_weight=grid["guidance_weight"],
            **{name: (value,) for name, value in chosen.items()},
        )
        config.num_images = _TRAIN
        config.cas = dict(
            train="configs/imagenet/cas_resnet50.py:arm=synthetic",
            overrides=(),
            evaluation="configs/imagenet/evaluate.py:sets=val",
            set="val",
            environment={},
        )
    config.num_shown = 40  # images per point
    if args["runlocal"]:
        config.grid = dict(guidance_weight=(1.0, 2.0))
        config.num_images, config.batch_size, config.allow_few_images = 20, 8, True
        config.reference.source.source = dict(val, per_class=1)
        config.reference.held_out.source.per_class = 1
        config.measures = ("frechet", "sliced")
    return config
