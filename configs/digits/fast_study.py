r"""What the demo's classifiers gain from digits that are drawn with fewer network evaluations.

python -m imagen_ft.worth --config=configs/digits/fast_study.py --workdir=runs/digits/fast --jobs=2

First run the demo, which trains the two stages. The reference draws with 32 + 16 evaluations of
DDPM; the arms with 1/2 to 1/24 of these, by solvers and by distilled stages. Arguments after the
file's name, with several values joined by +:

    solvers    ddpm+ddim+dpmpp+unipc+heun; none leaves them out
    settings   evaluations of both stages, 16x8+8x4+4x4+3x2+1x1
    distilled  steps of both stages, 8x4+4x4+2x2+1x1; none leaves them out
    runs       folder of the demo
    runlocal   a few steps of everything

Hardware: 2 CPU cores, an estimated 40 minutes. Expected, in 22 minutes, with
`:solvers=ddpm+dpmpp+unipc,settings=16x8+8x4+3x2+1x1`, on digits that nothing else has seen, with 7
seeds: accuracy, and its difference from the reference's 95.57 +- 0.85 in points:

    evaluations  share  ddpm           dpmpp          unipc          distilled
    16 + 8       1/2    95.40  -0.17   95.63  +0.06   96.17  +0.60
     8 + 4       1/4    93.64  -1.93   95.05  -0.51   95.14  -0.43   95.35  -0.21
     4 + 4       1/6                   93.49  -2.08                  94.84  -0.73
     3 + 2       1/10   91.13  -4.43   90.85  -4.71   90.66  -4.90
     2 + 2       1/12                                                94.75  -0.81
     1 + 1       1/24   82.54  -13.02  82.01  -13.56  82.01  -13.56  93.49  -2.08

Distilled stages with a quarter of the evaluations are as good as the reference within one point (p
of equivalence 0.048); with a twelfth they lose 0.8 points (90% interval 0.4 to 1.3), of which 7
seeds cannot tell whether it is within one. Dpmpp with 4 + 4 comes from a run of its own; ddim and
heun were not measured.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import common

# Overrides for each sampler: the demo's config has a strength of noise, which only DDPM uses.
SOLVERS = {
    "ddpm": (),
    "ddim": (),
    "dpmpp": ("logvar_coeff=0.0",),
    "unipc": ("logvar_coeff=0.0",),
    "heun": ("logvar_coeff=0.0",),
}


def _pairs(text):
    return tuple(tuple(map(int, pair.split("x"))) for pair in _words(text))


def _words(text):
    return [word for word in text.split("+") if word != "none"]


def get_config(arg=""):
    args = arguments.parse(
        arg,
        solvers="+".join(SOLVERS),
        settings="16x8+8x4+4x4+3x2+1x1",
        distilled="8x4+4x4+2x2+1x1",
        runs="runs/digits",
        runlocal=False,
    )
    local = ":runlocal" if args["runlocal"] else ""
    config = ConfigDict()
    config.name = "digits"
    config.runs = dict(base4=f"{args['runs']}/finetune_base4", sr8=f"{args['runs']}/finetune_sr8")
    config.generate = "configs/digits/generate.py"
    config.distill = f"configs/digits/distill.py{local}"
    classifier = "configs/digits/classifier.py:arm="
    end = ",runlocal" if args["runlocal"] else ""
    config.classifier = f"{classifier}synthetic,k=30{end}"
    config.real = f"{classifier}real{end}"
    config.source = "synthetic"  # which of the classifier's train_sources the images replace
    config.reference = dict(sampler="ddpm", steps=(32, 16))
    config.solvers = {name: SOLVERS[name] for name in _words(args["solvers"])}
    config.settings = _pairs(args["settings"])
    config.distilled = _pairs(args["distilled"])
    config.margin = 0.01  # of accuracy, for the test of equivalence
    config.overrides = ()  # for the classifiers
    config.evaluation = dict(config="configs/digits/evaluate.py", set="test")
    config.environment = common.ENVIRONMENT
    if args["runlocal"]:
        config.solvers, config.settings = dict(dpmpp=SOLVERS["dpmpp"]), ((2, 1),)
        config.distilled = ((16, 8),)
    return config
