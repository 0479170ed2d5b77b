r"""Distils the fine-tuned DeepFloyd IF-II-L, 64 -> 256, into few steps, a round at a time.

python -m imagen_ft.finetune --config=configs/imagenet/distill_if_ii_l.py \
    --workdir=runs/imagenet/distilled/if_ii_l_32

Before it, the run of `if_ii_l.py`, whose arguments are these too, or its weights. IF-II-L predicts
eps and a variance. Its student predicts v, for from eps a step out of noise alone cannot tell an
image, and no variance, for it draws no noise: the first round has as many steps as its teacher.
Arguments besides:

    steps      of the student, 32 (the first round); then 16, 8, 4
    teacher    a run: by default that of `if_ii_l.py`; of a later round the student of the one
               before it
    guidance   of the first round's teacher, which the student learns (Meng et al. 2023)
    runlocal   without a teacher: the tiny network of `if_ii_l.py`, trained

On TPUs `pip install ".[tpu]"` first, on GPUs `pip install ".[cuda]"`.
Hardware: as `if_ii_l.py`, with two forward passes of the teacher beside the student's step (one in
the first round; guidance doubles them), and its weights, in parts like the student's. Not run.
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
    config.seed = 2  # not the noise that training has seen
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
    # Salimans & Ho 2022, appendix C: 50,000 updates a round, the rate falling to 0.
    config.total_steps = 50_000
    config.optimizer.schedule, config.optimizer.warmup_steps = "cosine", 1000
    config.pictures.sampler = ConfigDict(dict(name="ddim", num_steps=args["steps"], eta=0.0))
    config.evaluation_metric.sampling.sampler = config.pictures.sampler
    if args["runlocal"]:
        config.total_steps, config.optimizer.warmup_steps = 4, 2
    return config
