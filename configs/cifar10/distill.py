r"""Distils a stage of CIFAR-10's photographs into half of its steps, or to consistency.

python -m imagen_ft.finetune --config=configs/cifar10/distill.py \
    --workdir=runs/cifar10/distilled/sr32_32

Before it, the stage, by `finetune_sr32.py` or `finetune_base16.py`. Its network predicts eps, from
which a step out of noise alone cannot tell an image: the student learns v, in a round of as many
steps as its teacher has first. What can be said behind the name of the file, besides the data's
arguments of `finetune_base16.py`:

    stage      sr32 (the default) or base16
    steps      of the student, 64: the first round, with as many as its teacher; then 32, 16, 8, 4.
               Of consistency the levels of noise that it is trained on
    teacher    a run: by default the stage's own; of a later round the student of the one before it
    method     progressive (the default) or consistency, from a student that has learned v
    guidance   of the teacher, which the student learns
    runlocal   a few steps; without a teacher the small network of `finetune_sr32.py` is trained

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU, minutes a round, by estimate.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.cifar10 import common, finetune_base16, finetune_sr32

STAGES = {"base16": finetune_base16, "sr32": finetune_sr32}


def get_config(arg=""):
    args = arguments.parse(
        arg,
        stage="sr32",
        steps=64,
        teacher="",
        method="progressive",
        guidance=1.0,
        data=common.DATA,
        root="cifar10_sample",
        runlocal=False,
    )
    if args["stage"] not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {args['stage']}")
    local = ",runlocal" if args["runlocal"] else ""
    data = f"data={args['data']},root={args['root']}{local}"
    config = STAGES[args["stage"]].get_config(data)
    if args["runlocal"] and not args["teacher"]:
        return config

    config.seed = 2  # not the noise that training has seen
    config.stage.prediction = "v"
    first = not args["teacher"]
    config.distill = dict(
        teacher=args["teacher"] or f"runs/cifar10/{args['stage']}",
        method=args["method"],
        steps=args["steps"],
        guidance_weight=args["guidance"],
        prediction="eps" if first else "v",
    )
    config.pictures.sampler = ConfigDict(dict(name="ddim", num_steps=args["steps"], eta=0.0))
    if args["method"] == "progressive":
        config.distill.teacher_steps = args["steps"] * (1 if first else 2)
    else:
        config.distill.target = "target"
        config.ema.target = dict(decay=0.95, schedule="constant")
        config.pictures.sampler = ConfigDict(dict(name="consistency", num_steps=2))
    config.evaluation_metric.sampling.sampler = config.pictures.sampler
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 2e-4, 100
    if not args["runlocal"]:
        config.total_steps = 5000
    return config
