r"""Trains Imagen's 400M super-resolution, 256 -> 1024, on crops of 64 -> 256.

python -m imagen_ft.finetune --config=configs/imagenet/imagen_sr1024.py \
    --workdir=runs/imagenet/imagen_sr1024

Before it, once:

    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-I-L-v1.0 --to=weights/IF-I-L
    python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-L \
        --to=data/imagenet_text128 --max_length=128

`common.py` describes the arguments (`:host`, `:runlocal`, `:data=DIR`, ...). Without the hardware,
`--dry_run` prints the network, and `--preflight=v4:4x4x16` what a chip needs.

The paper does not fine-tune this stage: the length is that of Imagen's own training. Give it
images of 1024 pixels or more (`:data=...`): most of ImageNet's are smaller, and enlarged ones teach
it blur.

Hardware: 256 TPU v4, 0.09 s a step, 65 hours (1.3 TFLOP an image at 40% of the peak). `:host`, 8
H100: 0.21 s a step, 6.0 days. By `--preflight` a v4 chip needs 5.3 GiB of its 32, and the compiler
estimates 0.065 s a step, nearly two thirds in convolutions, 0.038 s being the least for its FLOPs.
"""

from configs.imagenet import common


def get_config(arg=""):
    return common.training(
        arg,
        stage=common.imagen_stage("imagen_sr1024", "linear", size=1024, low_size=256),
        tiny="tiny_imagen_sr",
        optimizer=common.adam(),
        total_steps=2_500_000,
        text=common.IMAGEN_TEXT,
        guidance_weight=1.0,
        sampler=dict(name="ddim", num_steps=32, logvar_coeff=0.0, eta=0.0),
        host_accumulation=2,
        crop_size=256,
    )
