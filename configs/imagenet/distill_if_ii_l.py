r"""Distils the fine-tuned DeepFloyd IF-II-L, 64 -> 256, into few steps, one round at a time.

python -m imagen_ft.finetune --config=configs/imagenet/distill_if_ii_l.py \
    --workdir=runs/imagenet/distilled/if_ii_l_32

First run `if_ii_l.py`, or import its weights. IF-II-L predicts eps and a variance. Its student
predicts v, as eps says nothing about the image at pure noise, and no variance, as it draws no
noise; so a first round keeps the teacher's number of steps. Arguments, besides those of
`if_ii_l.py`:

    steps      of the student: 32 in the first round, then 16, 8, 4
    teacher    a run: by default that of `if_ii_l.py`; in a later round the student of the previous
               one
    guidance   weight of the first teacher's guidance, which the student learns (Meng et al. 2023)
    runlocal   a few steps; without a teacher it trains the tiny network of `if_ii_l.py`

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: as for `if_ii_l.py`, plus two forward passes of the teacher per step (one in the first
round; guidance doubles them) and the teacher's weights, sharded like the student's. Not run yet.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet import if_ii_l
from configs.imagenet.images import DATA


def get_config(arg=""):
    args = arguments.parse(
        arg,
        steps=32,
        teacher="",
        guidance=1.0,
        data=DATA,
        train="train",
        val="val",
        tfds="",
        host=False,
        runlocal=False,
    )
    own = {name: args[name] for name in ("data", "train", "val", "tfds") if args[name]}
    switches = [name for name in ("host", "runlocal") if args[name]]
    words = [*(f"{name}={value}" for name, value in own.items()), *switches]
    config = if_ii_l.get_config(",".join(words))
    if args["runlocal"] and not args["teacher"]:
        return config

    first = not args["teacher"]
    config.seed = 2  # other noise than the training's
    config.stage.prediction, config.stage.learned_variance = "v", False
    config.init_from, config.loss.vlb_weight = "", 0.0
    config.distill = dict(
        teacher=args["teacher"] or "runs/imagenet/if_ii_l",
        method="progressive",
        steps=args["steps"],
        teacher_steps=args["steps"] * (1 if first else 2),
        prediction="eps" if first else "v",
        learned_variance=first,
        guidance_weight=args["guidance"],
    )
    # Salimans & Ho 2022, appendix C: 50,000 updates per round, with the rate falling to 0.
    config.total_steps = 50_000
    config.optimizer.schedule, config.optimizer.warmup_steps = "cosine", 1000
    config.pictures.sampler = ConfigDict(dict(name="ddim", num_steps=args["steps"], eta=0.0))
    config.evaluation_metric.sampling.sampler = config.pictures.sampler
    if args["runlocal"]:
        config.total_steps, config.optimizer.warmup_steps = 4, 2
    return config
