r"""Searches for the best way of sampling a stage of the demo's digits.

python -m imagen_ft.sweep --config=configs/digits/sweep.py --workdir=runs/digits/sweep

First run the demo (or its commands one by one), which trains the two stages and the classifier of
the pool. Arguments after the file's name:

    stage      sr8 (the default), which enlarges digits that base4 draws once for all points; or
               base4
    low        real: sr8 enlarges real digits, shrunk
    solvers    compares samplers over numbers of network evaluations, instead of the stage's grid
    extractor  a run of classifiers.train
    runlocal   two points of a few images

`--cas` then trains classifiers on the images of each point. The whole grid takes 36,000 images;
`--budget=7200` draws a fifth of them.

Hardware: 2 CPU cores, 5 minutes for `stage=base4`, 8 for `stage=base4,solvers`. Expected:
report.html, best.py; for the solvers these Frechet distances (features of the pool's classifier,
one seed):

    steps    4      6      10     16     32     64     evaluations
    ddpm     0.446  0.258  0.162  0.114  0.076  0.057  one per step
    ddim     0.425  0.254  0.147  0.092  0.054  0.042
    dpmpp    0.380  0.201  0.092  0.051  0.034  0.032
    unipc    0.351  0.182  0.088  0.050  0.034  0.033
    heun     4.58   1.83   0.116  0.023  0.031  0.037  two per step, one in the last

So 16 evaluations of unipc or dpmpp get closer to the real digits than 64 of ddpm.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import common, generate
from configs.measures import set_measures

GRIDS = {
    "base4": dict(
        guidance_weight=(1.0, 1.25, 1.5, 2.0, 3.0, 5.0),
        logvar_coeff=(0.0, 0.5, 1.0),
        num_steps=(32, 64),
    ),
    "sr8": dict(
        guidance_weight=(1.0, 2.0, 5.0),
        noise_augmentation=(0.0, 0.2, 0.4),
        logvar_coeff=(0.1, 0.3),
        num_steps=(8, 16),
    ),
}
# heun takes two evaluations per step: its 16 steps compare with 32 of the others, and so on.
SOLVERS = dict(
    sampler=("ddpm", "ddim", "dpmpp", "unipc", "heun"),
    num_steps=(4, 6, 10, 16, 32, 64),
)


def get_config(arg=""):
    args = arguments.parse(
        arg,
        stage="sr8",
        low="",
        solvers=False,
        extractor="runs/digits/classifiers/pool",
        runlocal=False,
    )
    if args["stage"] not in GRIDS:
        raise ValueError(f"stage must be one of {', '.join(GRIDS)}, got {args['stage']}")
    if args["low"] not in ("", "real"):
        raise ValueError(f"low must be '' or real, got {args['low']}")
    config = ConfigDict()
    config.cascade = generate.get_config("runlocal" if args["runlocal"] else "")
    config.cascade.images_per_prompt = 8  # for imagen_ft.sample
    config.cascade.show_stages = True
    config.stage = args["stage"]
    config.grid = SOLVERS if args["solvers"] else GRIDS[args["stage"]]
    config.num_images = 1000  # per point
    config.labels = "balanced"
    config.low = dict(source=dict(name="digits", split="pool")) if args["low"] else {}

    size = config.cascade.stages[config.stage].stage.size
    config.reference = dict(
        statistics="",  # an npz to use instead of the source
        source=dict(source=dict(name="digits", split="pool"), square=size),
        held_out=dict(source=dict(name="digits", split="validation"), square=size),
    )
    config.extractor = dict(
        name="classifier", path=args["extractor"], seed=0, ema="main", best=False
    )
    config.batch_size = 100
    set_measures(config, subset_size=100, without=("spatial_frechet", "classes_apart", "copying"))
    config.choose_by = "frechet"
    config.halving = dict(measure="frechet", factor=3, finalists=2)  # with --budget
    config.cas = dict(
        train="configs/digits/classifier.py:arm=synthetic,k=1",
        overrides=("seeds=2",),
        evaluation="configs/digits/evaluate.py:split=validation",
        set="validation",
        environment=common.ENVIRONMENT,
    )
    config.num_shown = 40  # images per point
    if args["runlocal"]:
        config.grid = dict(guidance_weight=(1.0, 2.0))
        config.num_images = 70
        config.kernel.subsets, config.kernel.subset_size = 10, 20
        config.sliced.num_directions = 100
    return config
