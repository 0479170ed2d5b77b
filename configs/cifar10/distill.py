r"""Distils a stage of CIFAR-10's photographs into half as many steps, or to consistency.

python -m imagen_ft.finetune --config=configs/cifar10/distill.py \
    --workdir=runs/cifar10/distilled/sr32_32

First train the stage, with `finetune_sr32.py` or `finetune_base16.py`. Its network predicts eps,
which at pure noise says nothing about the image; so the student predicts v, and a first round keeps
the teacher's number of steps. Arguments after the file's name, besides those of
`finetune_base16.py` for the data:

    stage      sr32 (the default) or base16
    steps      of the student: 64 in the first round, as many as its teacher; then 32, 16, 8, 4.
               For consistency, the number of noise levels that it is trained on
    teacher    a run: by default the stage's own; in a later round the student of the previous one
    method     progressive (the default) or consistency, from a student that has learned v
    guidance   weight of the teacher's guidance, which the student learns
    runlocal   a few steps; without a teacher it trains the small network of `finetune_sr32.py`

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: one GPU, an estimated few minutes per round.
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

    config.seed = 2  # other noise than the training's
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
