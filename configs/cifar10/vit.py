r"""Trains a small vision transformer on CIFAR-10's photographs, and on generated ones.

python -m classifiers.train --config=configs/cifar10/vit.py:arm=real \
    --workdir=runs/cifar10/vit/real

`recognition.py` describes the arguments (`:arm=real+generated,k=2`, `:cpu`, `:runlocal`, ...), and
`finetune_base16.py` the data. Patches of 4 px, positions and pooling of the plain ViT-S/16.

Hardware: one GPU, minutes. `:cpu`, a third of the width and half the depth, starts on 2 cores.
"""

from configs.cifar10 import recognition


def get_config(arg=""):
    model = dict(name="vit", width=192, depth=8, num_heads=3, patch_size=4)
    return recognition.training(
        arg,
        full=dict(model, positions="sincos", pool="mean", drop_path=0.1),
        cpu=dict(width=64, depth=4, num_heads=2, drop_path=0.0),
        tiny=dict(width=16, depth=1, num_heads=2),
        optimizer=dict(
            name="adamw",
            learning_rate=1e-3,
            schedule="cosine",
            weight_decay=0.05,
            clip_norm=1.0,
            warmup_epochs=5,
        ),
        epochs=200,
        cpu_epochs=20,
    )
