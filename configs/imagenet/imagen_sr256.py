r"""Trains Imagen's 600M super-resolution on ImageNet, 64 -> 256.

python -m imagen_ft.finetune --config=configs/imagenet/imagen_sr256.py \
    --workdir=runs/imagenet/imagen_sr256

Before it, once:

    python -m imagen_ft.weights --from=deepfloyd:DeepFloyd/IF-I-L-v1.0 --to=weights/IF-I-L
    python -m imagen_ft.text --class_names=imagenet --weights=weights/IF-I-L \
        --to=data/imagenet_text128 --max_length=128

`common.py` describes the arguments (`:host`, `:runlocal`, `:data=DIR`, ...). Without the hardware,
`--dry_run` prints the network, and `--preflight=v4:4x4x16` what a chip needs.

Imagen's weights are not public, so this starts from scratch, which took Imagen 2.5M steps;
`--config.init_from=DIR` starts from a run of the same network, and then this is the paper's
fine-tuning.

Hardware: 256 TPU v4, 0.11 s a step, 15 hours (1.5 TFLOP an image at 40% of the peak). `:host`, 8
H100: 0.25 s a step, 33 hours. By `--preflight` a v4 chip needs 6.2 GiB of its 32, and the compiler
estimates 0.071 s a step, nearly two thirds in convolutions, 0.044 s being the least for its FLOPs.
"""

from configs.imagenet import common


def get_config(arg=""):
    return common.training(
        arg,
        stage=common.imagen_stage("imagen_sr256", "cosine", size=256, low_size=64),
        tiny="tiny_imagen_sr",
        optimizer=common.adam(),
        total_steps=490_000,
        text=common.IMAGEN_TEXT,
        guidance_weight=1.0,
        sampler=dict(name="ddpm", num_steps=128, logvar_coeff=0.1, eta=0.0),
        host_accumulation=2,
    )
