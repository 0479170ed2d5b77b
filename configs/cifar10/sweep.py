r"""Searches for the best way of sampling a stage on CIFAR-10.

python -m imagen_ft.sweep --config=configs/cifar10/sweep.py --workdir=runs/cifar10/sweep

First train the two stages, see `sample.py`, and a classifier with `resnet.py`. Arguments after the
file's name:

    stage       sr32 (the default), which enlarges images that base16 draws once for all points; or
                base16
    extractor   a run of classifiers.train, whose features are compared; the numbers are not called
                FID, which is for Inception's features
    data, root  as in `finetune_base16.py`
    runlocal    two points of a few images, for runs with `runlocal`

Points are compared with the training images. The test images are kept for the final comparison of
classifiers, so there is no CAS here.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU, not timed; `--budget=72000` draws a fifth of the images.
Expected: report.html, best.py.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.cifar10 import common, generate
from configs.measures import set_measures

GRIDS = {
    "base16": dict(
        guidance_weight=(1.0, 1.25, 1.5, 2.0, 3.0, 5.0),
        logvar_coeff=(0.0, 0.3, 1.0),
        num_steps=(64, 128),
    ),
    "sr32": dict(
        guidance_weight=(1.0, 2.0, 5.0),
        noise_augmentation=(0.0, 0.2, 0.4),
        logvar_coeff=(0.1, 0.3),
        num_steps=(32, 64),
    ),
}


def get_config(arg=""):
    args = arguments.parse(
        arg,
        stage="sr32",
        extractor="runs/cifar10/classifiers/real",
        data="data/cifar10_sample.zip",
        root="cifar10_sample",
        runlocal=False,
    )
    if args["stage"] not in GRIDS:
        raise ValueError(f"stage must be one of {', '.join(GRIDS)}, got {args['stage']}")
    config = ConfigDict()
    local = ",runlocal" if args["runlocal"] else ""
    config.cascade = generate.get_config(f"data={args['data']},root={args['root']}{local}")
    config.cascade.images_per_prompt = 8  # for imagen_ft.sample
    config.cascade.show_stages = True
    config.stage = args["stage"]
    config.grid = GRIDS[args["stage"]]
    config.num_images = 10_000  # per point
    config.labels = "balanced"
    config.low = {}  # such as dict(source=...): real images to enlarge

    size = config.cascade.stages[config.stage].stage.size
    config.reference = dict(
        statistics="",  # an npz to use instead of the source
        source=dict(source=common.source(args, "train"), square=size),
        held_out=dict(source=common.source(args, "validation"), square=size),
    )
    config.extractor = dict(
        name="classifier", path=args["extractor"], seed=0, ema="main", best=False
    )
    config.batch_size = 500
    # These need more held-out images than there are features.
    without = ("spatial_frechet", "relative", "classes_apart", "copying")
    set_measures(config, subset_size=1000, without=without)
    config.choose_by = "frechet"
    config.halving = dict(measure="frechet", factor=3, finalists=2)  # with --budget
    config.cas = {}
    config.num_shown = 40  # images per point
    if args["runlocal"]:
        config.grid = dict(guidance_weight=(1.0, 2.0))
        config.num_images, config.allow_few_images = 40, True
        config.reference.source.source.per_class = 8
        config.kernel.subsets, config.kernel.subset_size = 10, 20
        config.sliced.num_directions = 100
    return config
