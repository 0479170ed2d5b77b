r"""Generates a synthetic ImageNet: for every class as many images as the real one has, times k.

python -m imagen_ft.generate --config=configs/imagenet/generate.py:k=10 \
    --workdir=data/imagenet_synthetic

Before it, the two runs; add `--worker=I --num_workers=N` to share the work among N machines or
jobs, each with all its chips:

    python -m imagen_ft.finetune --config=configs/imagenet/if_i_l.py --workdir=runs/imagenet/if_i_l
    python -m imagen_ft.finetune --config=configs/imagenet/if_ii_l.py \
        --workdir=runs/imagenet/if_ii_l

What can be said behind the name of the file:

    cascade       if (DeepFloyd IF-L, the default) or imagen
    size          64, 256, or, of imagen, 1024; 1024 is stored at 256
    k             how many times the real set
    data, train   the real images, as in `common.py`; only their classes are counted
    runlocal      16 px by a tiny base, which is trained with `runlocal` as well

Guidance, variances, steps and noise augmentation of imagen are those that Azizi et al. 2023 chose
(1000, 1000 and 32 steps); IF keeps its learned variance and takes 100 and 50 steps.

Hardware: `python -m tests.benchmarks.costs` tells chip hours a million images. Expected: k * 1.28M
images in shards of about 150 MB: 64 px take 12 GB, 256 px about 50 GB, for each real set.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.imagenet import common, if_i_l, if_ii_l, imagen_base64, imagen_sr256, imagen_sr1024


def _ddpm(num_steps: int, logvar_coeff: float) -> dict:
    return dict(name="ddpm", num_steps=num_steps, logvar_coeff=logvar_coeff, eta=0.0)


# Of each stage: its run, the config that trains it, guidance and sampler.
CASCADES = {
    "if": {
        64: ("if_i_l", if_i_l, 1.25, common.if_sampler(100)),
        256: ("if_ii_l", if_ii_l, 1.0, common.if_sampler(50)),
    },
    "imagen": {
        64: ("imagen_base64", imagen_base64, 1.25, _ddpm(1000, 0.0)),
        256: ("imagen_sr256", imagen_sr256, 1.0, _ddpm(1000, 0.1)),
        1024: (
            "imagen_sr1024",
            imagen_sr1024,
            1.0,
            dict(name="ddim", num_steps=32, logvar_coeff=0.0, eta=0.0),
        ),
    },
}


def get_config(arg=""):
    args = arguments.parse(
        arg, cascade="if", size=256, k=1, data="data/imagenet", train="train", runlocal=False
    )
    if args["cascade"] not in CASCADES:
        raise ValueError(f"cascade={args['cascade']}: there is {', '.join(CASCADES)}")
    table, size = CASCADES[args["cascade"]], 64 if args["runlocal"] else args["size"]
    if size not in table:
        raise ValueError(f"size={size}: there is {', '.join(map(str, table))}")
    stages, text = {}, None
    for pixels, (name, training, guidance_weight, sampler) in table.items():
        if pixels > size:
            break
        trained = training.get_config("runlocal" if args["runlocal"] else "")
        text = text or trained.text
        stages[name] = dict(
            run=f"runs/imagenet/{name}",
            stage=trained.stage,
            sampler=dict(sampler, num_steps=2) if args["runlocal"] else sampler,
            guidance_weight=guidance_weight,
            threshold_percentile=99.5,
            noise_augmentation=0.0,
        )
    png, jpeg = dict(size=0, format="png"), dict(size=256, format="jpeg", quality=95)
    return ConfigDict(
        dict(
            name=f"imagenet_{args['cascade']}_{size}",
            seed=0,
            class_names="imagenet",
            text=text,
            stages=stages,
            real_source=dict(name="image_folder", path=args["data"], root=args["train"]),
            copies=args["k"],
            images_per_shard=0,
            encoding=png if size == 64 else jpeg,
            batch_size=8 if args["runlocal"] else 256,
            mesh=dict(data=-1, fsdp=1, tensor=1),
        )
    )
