r"""Trains the ResNet-50 of the classification accuracy score (CAS).

python -m classifiers.train --config=configs/imagenet/cas_resnet50.py:arm=real+generated,k=1 \
    --workdir=runs/imagenet/cas_resnet50/real+generated

`recognition.py` describes the arguments (`:arm=real`, `k`, `:data=DIR`, `:runlocal`, ...). Without
the hardware, `--dry_run` prints the network, and `--preflight=v4:2x2x2` what a chip needs.

Ravuri & Vinyals 2019, as Azizi et al. 2023 (section 5.2) train it: on the central crop alone. The
score is the accuracy of the arm `generated`: 64.96 with samples of 256 px, 69.24 with 1024 px.

Hardware: 8 TPU v4, 0.9 hours, or 8 H100, 0.2 hours, by operations; to feed them takes a core for
every 150 to 270 images a second. Expected top-1 (%), real / generated / both: 73.09 / 69.24 / -.
"""

from configs.imagenet import recognition


def get_config(arg=""):
    return recognition.training(
        arg,
        model=dict(name="resnet50"),
        size=224,
        epochs=90,
        batch_size=1024,
        optimizer=recognition.momentum(0.4, nesterov=True),
        drops=(30, 60, 80),
        crop_ratio=224 / 256,
        augment=None,
    )
