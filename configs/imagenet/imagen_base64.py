r"""Trains Imagen's 2B base on ImageNet at 64x64.

python -m imagen_ft.finetune --config=configs/imagenet/imagen_base64.py \
    --workdir=runs/imagenet/imagen_base64

Before it, once:

    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-I-L-v1.0 --to=weights/IF-I-L
    python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-L \
        --to=data/imagenet_text128 --max_length=128

`common.py` describes the arguments (`:host`, `:runlocal`, `:data=DIR`, ...). Without the hardware,
`--dry_run` prints the network, and `--preflight=v4:4x4x16` what a chip needs.

Imagen's weights are not public, so this starts from scratch, which took Imagen 2.5M steps;
`--config.init_from=DIR` starts from a run of the same network, and then this is the paper's
fine-tuning.

Hardware: 256 TPU v4, 0.31 s a step, 18 hours (4.3 TFLOP an image at 40% of the peak). `:host`, 8
H100: 0.70 s a step, 41 hours. By `--preflight` a v4 chip needs 17.7 GiB of its 32, and the compiler
estimates 0.236 s a step: half in convolutions, a fifth in attention, whose float32 weights go
through memory, 0.129 s being the least for its FLOPs.
"""

from configs.imagenet import common


def get_config(arg=""):
    return common.training(
        arg,
        stage=common.imagen_stage("imagen_base64", "cosine", size=64),
        tiny="tiny_imagen_base",
        optimizer=common.adafactor(),
        total_steps=210_000,
        text=common.IMAGEN_TEXT,
        guidance_weight=1.25,
        sampler=dict(name="ddpm", num_steps=128, logvar_coeff=0.0, eta=0.0),
        host_accumulation=4,
    )
