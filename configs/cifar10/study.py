r"""Studies what synthetic photographs of CIFAR-10's classes are worth to a ResNet and a ViT.

python -m classifiers.study --config=configs/cifar10/study.py --workdir=runs/cifar10/study

First run `configs/cifar10/generate.py:k=10`. Arguments: `data`, the real images, if not those of
`resnet.py` and `vit.py`; `synthetic`, the synthetic set; `runlocal` for a CPU; `filter`, a workdir
of `filter.py:copies=K`, with `copies=K`: runs the study `filters` only.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU; several with `--jobs=N --submit="env CUDA_VISIBLE_DEVICES={lane}"`. These are 15
runs of five seeds: 75 times what `resnet.py` and `vit.py` take, with up to eleven times the images.
"""

from ml_collections import ConfigDict

from configs import arguments

NETWORKS = ("resnet", "vit")


def get_config(arg=""):
    args = arguments.parse(
        arg,
        data="",
        synthetic="runs/cifar10/synthetic",
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
    config.synthetic = args["synthetic"]
    config.filters = {}  # name -> workdir of imagen_ft.filter
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
