r"""Distils a stage of the demo's digits into half as many steps, or to consistency.

python -m imagen_ft.finetune --config=configs/digits/distill.py \
    --workdir=runs/digits/distilled/base4_16

First run the demo, which trains the two stages. Arguments after the file's name:

    stage      base4 (the default) or sr8
    steps      of the student, 16; for consistency, the number of noise levels it is trained on
    teacher    a run: by default the demo's, sampled with twice as many steps of DDIM; in the next
               round the student of this one, with half as many steps
    method     progressive (the default) or consistency, which has a sampler of that name
    guidance   weight of the teacher's guidance, which the student learns
    runlocal   a few steps

Hardware: 2 CPU cores, a minute per round.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import finetune_base4, finetune_sr8

STAGES = {"base4": finetune_base4, "sr8": finetune_sr8}


def get_config(arg=""):
    args = arguments.parse(
        arg,
        stage="base4",
        steps=16,
        teacher="",
        method="progressive",
        guidance=1.0,
        runlocal=False,
    )
    if args["stage"] not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {args['stage']}")
    config = STAGES[args["stage"]].get_config("runlocal" if args["runlocal"] else "")
    config.seed = 2  # other noise than the training's
    # The pretraining's 1,000 digits: 30 are too few for a student.
    config.train_source.split = "pool"
    config.init_from = ""  # a student starts as a copy of its teacher
    config.distill = dict(
        teacher=args["teacher"] or f"runs/digits/finetune_{args['stage']}",
        method=args["method"],
        steps=args["steps"],
        guidance_weight=args["guidance"],
    )
    config.optimizer.learning_rate, config.optimizer.schedule = 1e-3, "cosine"
    config.log_every, config.evaluate_every = 50, 300
    if args["method"] == "consistency":
        config.distill.target = "target"
        config.ema = ConfigDict(
            dict(
                main=dict(decay=0.99, schedule="warmup"),
                target=dict(decay=0.95, schedule="constant"),
            )
        )
    if args["runlocal"]:
        config.evaluate_every = 10
    else:
        config.total_steps = 2000 if args["method"] == "consistency" else 300
    return config
