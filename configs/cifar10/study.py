r"""Studies what generated photographs of CIFAR-10's kind are worth to a ResNet and a ViT.

python -m classifiers.study --config=configs/cifar10/study.py --workdir=runs/cifar10/study

Before it, `configs/cifar10/generate.py:k=10`. Arguments: `data`, the real images, where they are
not those of `resnet.py` and `vit.py`; `generated`, the generated set; `runlocal` for a CPU;
`filter`, a work directory of `filter.py:copies=K`, with `copies=K`: then the study `filters` alone.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU; several with `--jobs=N --submit="env CUDA_VISIBLE_DEVICES={lane}"`. It is 15 runs
of five seeds: what `resnet.py` and `vit.py` say 75 times, for up to eleven times the images.
"""

from ml_collections import ConfigDict

from configs import arguments

NETWORKS = ("resnet", "vit")


def get_config(arg=""):
    args = arguments.parse(
        arg,
        data="",
        generated="runs/cifar10/generated",
        filter="",
        copies=1,
        runlocal=False,
    )
    everywhere = [f"data={args['data']}"] if args["data"] else []
    everywhere += ["runlocal"] if args["runlocal"] else []

    def path(name):
        return f"configs/cifar10/{name}.py" + (f":{','.join(everywhere)}" if everywhere else "")

    config = ConfigDict()
    config.name = "CIFAR-10"
    config.studies = ("cas", "scaling", "models", "per_class")
    config.models = {label: dict(config=path(label), overrides=()) for label in NETWORKS}
    config.models_of = dict(
        cas=NETWORKS, scaling=("resnet",), models=NETWORKS, per_class=("resnet",)
    )
    config.copies = args["copies"]
    config.scaling_copies = tuple(range(11))
    config.generated = args["generated"]
    config.filters = {}  # a work directory of imagen_ft.filter each
    config.overrides = ()
    config.seeds = 5
    config.evaluation = dict(config=path("evaluate"), set="test")
    config.environment = dict()
    if args["filter"]:
        config.studies, config.filters["filter"] = ("filters",), args["filter"]
        config.models_of.filters = NETWORKS
    if args["runlocal"]:
        config.scaling_copies, config.seeds = (0, 1), 2
    return config
