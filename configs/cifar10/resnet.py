r"""Trains a ResNet-18 for small images on CIFAR-10's photographs, and on generated ones.

python -m classifiers.train --config=configs/cifar10/resnet.py:arm=real \
    --workdir=runs/cifar10/classifiers/real

`recognition.py` describes the arguments (`:arm=real+generated,k=2`, `:cpu`, `:runlocal`, ...), and
`finetune_base16.py` the data.

Hardware: one GPU, minutes. `:cpu`, a smaller network, 2 cores: 8 minutes. Expected with `:cpu` and
12,000 real images: 61% of the test images; with 20 epochs, `--config.total_steps=1875`, 67%.
"""

from configs.cifar10 import recognition


def get_config(arg=""):
    model = dict(
        name="resnet", stage_sizes=(2, 2, 2, 2), width=64, bottleneck=False, small_stem=True
    )
    return recognition.training(
        arg,
        full=dict(model, auxiliary_batch_norm=False),
        cpu=dict(stage_sizes=(1, 1, 1), width=16),
        tiny=dict(stage_sizes=(1,), width=8),
        optimizer=dict(
            name="sgd",
            learning_rate=0.2,
            schedule="cosine",
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            clip_norm=0.0,
            warmup_epochs=2,
        ),
        epochs=100,
        cpu_epochs=13,
    )
