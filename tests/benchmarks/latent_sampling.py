"""From prompts to pictures with Stable Diffusion's shapes, against diffusers' pipelines.

python -m tests.benchmarks.latent_sampling            # a quarter as wide, 256 px, on a CPU
python -m tests.benchmarks.latent_sampling --quick    # 128 px, within two minutes
python -m tests.benchmarks.latent_sampling --preset=sd15 --dtype=bfloat16 --batch=1,4,16  # a GPU

Both read the same files with random weights, start from the same noise, and end in pixels: U-Net,
guidance, DDIM, decoder; the text encoders have two layers, which cost next to nothing. Their images
must be the same before they are timed. On a GPU torch.compile compiles the peer's networks.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from imagen_ft.cascade import Cascade
from imagen_ft.cascade.drawing import image_keys
from imagen_ft.cascade.opened import as_config
from imagen_ft.diffusion.samplers import noise_of_keys
from imagen_ft.diffusion.stage import AUTOENCODER
from tests.benchmarks.harness import (
    Result,
    arguments,
    check_same_work,
    compare,
    matrix_peak,
    report,
)
from tests.benchmarks.operations import LATENT_SIZES, TOKENS, latent_model_flops
from tests.parity.latent_models import (
    DDIM,
    LATENTS,
    UNETS,
    VAE,
    save_pipeline,
    tiny_clip,
)
from tests.parity.torch_weights import randomize, relative_error
from tests.support.clip_vocabulary import END, VOCABULARY

SEED, GUIDANCE = 3, 7.5
# Width of the text states, and heads as the files count them; the rest is in `UNETS`.
TEXT_WIDTHS = {"sd15": 768, "sd21": 1024, "sdxl": 2048}
HEADS = {"sd15": 8, "sd21": [5, 10, 20, 20], "sdxl": [5, 10, 20]}
POOLED_WIDTH, SIZE_WIDTH = 1280, 256


@dataclasses.dataclass(frozen=True)
class Case:
    """A Stable Diffusion to measure.

    Attributes:
        kind: a key of `UNETS`.
        widths: of the U-Net's levels, finest first.
        vae_widths: of the auto-encoder's levels.
        text_width: of the text states.
        size: of the images, in pixels.
    """

    kind: str
    widths: list[int]
    vae_widths: list[int]
    text_width: int
    size: int

    def unet(self) -> UNet2DConditionModel:
        """The configuration in files of this kind, with other widths."""
        down = ["CrossAttnDownBlock2D"] * (len(self.widths) - 1)
        down = ["DownBlock2D", *down] if self.kind == "sdxl" else [*down, "DownBlock2D"]
        fields = dict(
            UNETS[self.kind],
            block_out_channels=self.widths,
            down_block_types=down,
            up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
            layers_per_block=2,
            norm_num_groups=32,
            cross_attention_dim=self.text_width,
            attention_head_dim=HEADS[self.kind],
            sample_size=self.size // 8,
        )
        if self.kind == "sdxl":
            fields |= dict(
                transformer_layers_per_block=[1, 2, 10],
                addition_time_embed_dim=SIZE_WIDTH,
                projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * SIZE_WIDTH,
            )
        return UNet2DConditionModel(**fields)

    def vae(self) -> AutoencoderKL:
        """The configuration in the files, with other widths."""
        levels = len(self.vae_widths)
        fields = dict(
            VAE,
            block_out_channels=self.vae_widths,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            layers_per_block=2,
            norm_num_groups=32,
        )
        return AutoencoderKL(**fields)

    def texts(self) -> dict[str, torch.nn.Module]:
        """Small text encoders: only the width of their states counts here."""
        wide = dict(vocab_size=len(VOCABULARY), max_position_embeddings=TOKENS, num_hidden_layers=2)
        if self.kind != "sdxl":
            return dict(text_encoder=tiny_clip("clip", hidden_size=self.text_width, **wide))
        second = dict(wide, hidden_size=POOLED_WIDTH, projection_dim=POOLED_WIDTH)
        first = tiny_clip("clip", hidden_size=self.text_width - POOLED_WIDTH, **wide)
        return dict(
            text_encoder=first, text_encoder_2=tiny_clip("openclip", eos_token_id=END, **second)
        )


def case_of(args: argparse.Namespace) -> Case:
    """The full --preset, or Stable Diffusion 1.5 with a quarter of its widths."""
    if args.preset:
        widths = [320, 640, 1280] if args.preset == "sdxl" else [320, 640, 1280, 1280]
        vae_widths = [128, 256, 512, 512]
        text_width = TEXT_WIDTHS[args.preset]
        return Case(args.preset, widths, vae_widths, text_width, LATENT_SIZES[args.preset])
    size = 128 if args.quick else 256
    return Case("sd15", [96, 160, 320, 320], [32, 64, 128, 128], 192, size)


class Pair:
    """Our cascade and diffusers' pipeline, from the same files."""

    def __init__(self, case: Case, args: argparse.Namespace, folder: pathlib.Path):
        self.case, self.steps = case, args.steps
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        networks = dict(unet=randomize(case.unet(), 0), vae=randomize(case.vae(), 0))
        pipeline = save_pipeline(
            folder, case.kind, "epsilon", DDIM, length=TOKENS, **networks, **case.texts()
        )
        config = as_config(folder)
        config.text.dtype = args.dtype
        self.cascade = Cascade.load(config, dtype=args.dtype)
        self.parameters = sum(p.numel() for p in networks["unet"].parameters())
        self.pipeline = pipeline.to(self.device, getattr(torch, args.dtype))
        if self.device == "cuda":
            self.pipeline.unet.compile(dynamic=False)
            self.pipeline.vae.decode = torch.compile(self.pipeline.vae.decode)

    def flops(self, evaluations: int) -> float:
        """Operations per image: both contexts if guided, all steps, the decoder."""
        stage, variables = self.cascade.stages[0], self.cascade.variables[0]
        model, decoder = stage.denoiser.model, stage.denoiser.autoencoder
        widths = self.case.text_width, POOLED_WIDTH if self.case.kind == "sdxl" else 0
        size = stage.denoiser.size
        context, step = (
            latent_model_flops(model, {"params": variables["params"]}, size, widths, method)
            for method in ("context", "denoise")
        )
        decoded = latent_model_flops(decoder, variables[AUTOENCODER], size, widths, "decode")
        return evaluations / self.steps * context + evaluations * step + decoded


def measure(pair: Pair, batch: int, guidance_weight: float, args: argparse.Namespace) -> Result:
    """One batch at one guidance weight: checks that the images agree, then times them."""
    case = pair.case
    side = case.size // 8
    prompts = [f"a dog {n}" for n in range(batch)]
    keys = image_keys(SEED, 0, np.arange(batch))
    noise = np.array(noise_of_keys(keys, (side, side, LATENTS))(0))
    latents = torch.from_numpy(noise).permute(0, 3, 1, 2)
    latents = latents.to(pair.device, getattr(torch, args.dtype))

    settings = dict(num_steps=pair.steps, guidance_weight=guidance_weight, seed=SEED)

    def ours() -> np.ndarray:
        return pair.cascade.sample(prompts, **settings)

    def peer() -> np.ndarray:
        images = pair.pipeline(
            prompts,
            num_inference_steps=pair.steps,
            guidance_scale=guidance_weight,
            height=case.size,
            width=case.size,
            latents=latents,
            output_type="pt",
        ).images
        # Like ours: integers on the host.
        return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    with mock.patch.object(
        pair.pipeline.unet, "forward", wraps=pair.pipeline.unet.forward
    ) as network:
        expected = peer()
    name = f"{case.kind} {case.size} px, guidance {guidance_weight:g}, batch {batch}"
    evaluations = pair.steps * (2 if guidance_weight != 1 else 1)
    evaluated = sum(len(call.args[0]) for call in network.call_args_list)
    error = relative_error(ours().astype(np.float32), torch.from_numpy(expected).float())
    check_same_work(name, args.dtype, error, batch * evaluations, evaluated)
    return compare(
        name,
        ours,
        peer,
        error=error,
        work=batch,
        unit="images/s",
        flops=batch * pair.flops(evaluations),
        evaluations=evaluations,
        repeats=3 if args.quick else 5,
    )


def main() -> None:
    """Runs the cases."""
    args = arguments(__doc__, preset="", batch="1")
    args.steps = args.steps or (2 if args.quick else 50 if args.preset else 4)
    torch.set_num_threads(args.threads)
    case = case_of(args)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(case, args, pathlib.Path(folder))
        print(
            f"{case.kind}: {pair.parameters / 1e6:.1f}M parameters, {case.size} px, "
            f"{args.steps} steps, {args.dtype}, {pair.device}",
            flush=True,
        )
        weights = (GUIDANCE, 1.0)
        results = [measure(pair, batch, weight, args) for batch in args.batch for weight in weights]
    report(results, matrix_peak(args.dtype))


if __name__ == "__main__":
    main()
