r"""Trains a 16x16 base on CIFAR-10's photographs, from scratch.

python -m imagen_ft.finetune --config=configs/cifar10/finetune_base16.py \
    --workdir=runs/cifar10/base16

The data is any export of CIFAR-10 as images, one folder a class, in a folder or a zip:
`cifar10_sample/train/airplane/0000.jpg`, ... in `data/cifar10_sample.zip`, or what the arguments
say: `:data=data/cifar10,root=` for `data/cifar10/train/airplane/...`.

Hardware: one GPU, 5 minutes (0.4 TFLOP a step; decoding takes as long). `:runlocal` is 20 steps of
a small network, for a CPU.
"""

from configs.cifar10 import common


def get_config(arg=""):
    return common.training(arg, "base16", total_steps=20_000)
