r"""Trains 16 -> 32 super-resolution on CIFAR-10's photographs, from scratch.

python -m imagen_ft.finetune --config=configs/cifar10/finetune_sr32.py \
    --workdir=runs/cifar10/sr32

The data and its arguments are those of `finetune_base16.py`.

Hardware: one GPU, 5 minutes (1.3 TFLOP a step; decoding takes as long). `:runlocal` is 20 steps of
a small network, for a CPU.
"""

from configs.cifar10 import common


def get_config(arg=""):
    return common.training(arg, "sr32", total_steps=10_000)
