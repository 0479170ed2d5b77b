r"""Trains a plain ViT-S/16 on any mix of real and generated images.

python -m classifiers.train --config=configs/imagenet/vit_s16.py:arm=real+generated,k=1 \
    --workdir=runs/imagenet/vit_s16/real+generated

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x2x4` what a chip needs.

Beyer et al. 2022 (Better plain ViT baselines); `:epochs=90` is their short form. Their weight
decay of 1e-4 is not multiplied with the learning rate of 1e-3, AdamW's is: 0.1 is the same.

Hardware: 16 TPU v4, 1.7 hours, or 8 H100, 0.9 hours, by operations; to feed them takes a core for
every 150 to 270 images a second. Expected top-1 (%), real / generated / both: 79.89 / 71.88 / 81.00
(Azizi et al. 2023, table 3).
"""

from configs.imagenet import recognition


def get_config(arg=""):
    return recognition.training(
        arg,
        model=dict(name="vit_s16"),
        size=224,
        epochs=300,
        batch_size=1024,
        optimizer=dict(
            recognition.transformer("adamw", 1e-3, weight_decay=0.1, mu_dtype="bfloat16"),
            no_decay=(),
            clip_norm=1.0,
            warmup_steps=10_000,
        ),
        crop_ratio=224 / 256,
        augment=dict(randaugment=recognition.rand_augment(2, 10)),
        mix=dict(mixup=0.2),
        scale=(0.05, 1.0),
    )
