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

Hardware: 2 CPU cores, an estimated 40 minutes. Expected with
`:solvers=dpmpp,settings=4x4,distilled=4x4`, on digits that nothing else has seen, 7 seeds:

                      evaluations  accuracy      difference, with its 90% interval
    ddpm, 32 + 16     48           95.57 ± 0.85
    dpmpp, 4 + 4      8            93.49 ± 0.70  -2.08 (-2.80 to -1.35)
    distilled, 4 + 4  8            94.92 ± 0.58  -0.64 (-1.39 to +0.10), p of equivalence 0.2

So distilled stages lose two thirds less than the solver does, and 7 seeds cannot tell whether the
rest is within one point. The other arms were not measured.
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
