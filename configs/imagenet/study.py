r"""Studies what a synthetic ImageNet is worth, as Azizi et al. 2023 do in section 5.

python -m classifiers.study --config=configs/imagenet/study.py --workdir=runs/imagenet/study \
    --jobs=8 --submit="srun --nodes=1 --ntasks=1 --gpus=8 --job-name={step}"

First run `configs/imagenet/generate.py:k=10`. CAS (table 2) and the accuracies by class (figure 5)
use ResNet-50 with the recipe of Ravuri & Vinyals; real, synthetic and both (table 3) are compared
for twelve models; scaling (figure 6) uses ResNet-50 with ten seeds. Arguments: `data`, the real
images, if not those of the models' configs; `synthetic`, the synthetic set; `seeds` of scaling;
`runlocal`; `filter`, a workdir of `filter.py` on this many `copies`: runs the study `filters` only.

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: that of each model's config, `--jobs` times. There are 47 runs, 155 trainings;
`--config.studies="('cas',)"` starts with the cheapest two. Expected, with the paper's images: CAS
64.96 / 85.66 against 73.09 / 91.47 with real ones; both against real +1.04 points over the models,
p = 1e-5; scaling at 256 px best near 1x and better than real only up to 3x.
"""

from ml_collections import ConfigDict

from configs import arguments

# Table 3, in its order.
COMPARED = (
    "resnet50", "resnet101", "resnet152", "resnet_rs50_160", "resnet_rs101_160",
    "resnet_rs101_192", "resnet_rs152_224", "vit_s16", "deit_s", "deit_b", "deit_b_384", "deit_l",
)  # fmt: skip


def get_config(arg=""):
    args = arguments.parse(
        arg,
        data="",
        synthetic="data/imagenet_synthetic",
        filter="",
        copies=1,
        seeds=10,
        runlocal=False,
    )
    everywhere = [f"data={args['data']}"] if args["data"] else []
    everywhere += ["runlocal"] if args["runlocal"] else []

    def path(name, *arguments):
        arguments = ",".join([*arguments, *everywhere])
        return f"configs/imagenet/{name}.py" + (f":{arguments}" if arguments else "")

    config = ConfigDict()
    config.name = "ImageNet"
    config.studies = ("cas", "scaling", "models", "per_class")
    config.models = {
        label: dict(config=path(label), overrides=()) for label in (*COMPARED, "cas_resnet50")
    }
    # DeiT-B at 384 px starts from DeiT-B, each arm from its own.
    config.models.deit_b_384.init_from = "deit_b"
    config.models.resnet50.overrides = (f"seeds={args['seeds']}",)
    config.models_of = dict(
        cas=("cas_resnet50",),
        scaling=("resnet50",),
        models=COMPARED,
        per_class=("cas_resnet50",),
    )
    config.copies = args["copies"]
    config.scaling_copies = tuple(range(11))
    config.synthetic = args["synthetic"]
    config.filters = {}  # name -> workdir of imagen_ft.filter
    config.overrides = ()
    config.seeds = 0
    config.evaluation = dict(config=path("evaluate", "sets=val"), set="val")
    config.environment = dict()
    if args["filter"]:
        config.studies, config.filters["filter"] = ("filters",), args["filter"]
        config.models_of.filters = ("resnet50",)
    if args["runlocal"]:
        config.models_of.models = ("resnet50", "vit_s16")
        config.scaling_copies, config.seeds = (0, 1), 2
    return config
