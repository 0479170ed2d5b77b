r"""Trains one stage of the cascade: from scratch, from another run, or from public weights.

python -m imagen_ft.finetune --config=configs/digits/finetune_base4.py --workdir=runs/base4
python -m imagen_ft.finetune --config=configs/imagenet/imagen_base64.py --preflight=v4:4x4x16
python -m imagen_ft.finetune --config=configs/imagenet/few_shot.py:model=sd15 \
    --workdir=runs/few_shot

The same command resumes where it stopped: from its own newest good checkpoint, or if there is none
from the weights of --config.init_from, or if that is empty from new ones. On several hosts start it
on each; it finds the others through --coordinator or the settings of the cluster.
With --config.lora.rank=16 only adapters of that rank are trained, on the weights of
--config.init_from; their checkpoints take megabytes, and the run is sampled like any other.
With --config.distill.teacher=RUN --config.distill.steps=N it learns to draw in N steps what RUN
draws in 2 N (progressive distillation), or with --config.distill.method=consistency in one or a few
(the sampler 'consistency'), in both cases with the guidance of --config.distill.guidance_weight
built in: it starts from the weights of RUN, and its network runs once per step.
--config.prior.source.name=synthetic --config.prior.source.path=SET adds synthetic images of the
classes to a few real ones (prior preservation, DreamBooth), with their loss multiplied by
--config.prior.weight; --config.text_drop=0.1 drops the text of one image in ten, for guidance.
A stage with an auto-encoder is trained on latents, encoded at every step; with
--config.latents.cache=FOLDER the latents of all images, with --config.flip also of mirrored ones,
are encoded once, before the first step, and kept there in float16, for other runs to read too.
learning_curves.png shows its losses and, where --config.evaluation_metric.every asks for it, the
distance between its images and real ones: --config.best.metric=sampled_fid keeps the best by it.
goodput.jsonl in the run directory says how each attempt spent its time; after three attempts in a
row that failed or were killed at the same step, no other starts until you remove that file.
"""

import ml_collections
from absl import flags

from imagen_ft.diffusion.from_config import lacking_in_denoiser
from imagen_ft.text.encoders import lacking_in_text, make_text_encoder, text_shapes
from imagen_ft.training.distilling import lacking_in_distill
from imagen_ft.training.lacking import lacking_in_metric, lacking_in_pictures
from imagen_ft.training.latents import LATENTS
from imagen_ft.training.prior import lacking_in_prior
from imagen_ft.training.train_stage import train_stage
from imagen_ft.training.training import Training
from input_pipeline import class_names
from input_pipeline.batches.rates import cpu_seconds
from input_pipeline.sources.lacking import lacking_in_source
from launch.runtime import app
from launch.runtime.devices import joining
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.optional_fields import Defaults, below, unset
from launch.runtime.preflight import preflight
from launch.runtime.training.loop import check_fields, lacking_in_training


def define_flags(values: flags.FlagValues) -> None:
    """Defines the task's own flags."""
    joining.define_flags(values)
    preflight.define_flags(values)


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config does not set, but the command line may."""
    lora = {"rank": unset(int), "alpha": unset(float), "targets": (), "base_dtype": "float32"}
    images = {"crop_size": 0, "flip": False, "init_from": "", "class_names": class_names.MIXED}
    return {
        **below("", config, images),
        **below("loss", config.loss, {"min_snr_gamma": 0.0, "vlb_weight": 0.0}),
        **below("lora", config.get("lora") or {}, lora),
        **lacking_in_distill(config),
        **lacking_in_prior(config),
        **below("latents", config.get("latents") or {}, LATENTS),
        **lacking_in_denoiser("stage", config.stage),
        **lacking_in_text(config.text),
        **lacking_in_training(config),
        **lacking_in_pictures(config),
        **lacking_in_metric(config),
        **lacking_in_source("train_source", config.train_source),
        **lacking_in_source("evaluation_source", config.evaluation_source),
    }


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config, values = args.config, args.flags
    check_fields(config)
    training = Training.of(config)
    params = training.abstract.variables["params"]
    # 1. --dry_run: shapes alone.
    if args.dry_run:
        _, encoder_shapes = text_shapes(config.text)
        network = training.denoiser.shapes(training.text_shape)["params"]
        adapters = {"adapters": params} if training.lora else {}
        if training.teaching:
            teacher = training.teaching.teacher.shapes(training.text_shape)["params"]
            # There are no adapters with a teacher: a student starts with all of its weights.
            adapters = {"teacher": teacher}
        if training.denoiser.autoencoder is not None:
            adapters["autoencoder"] = training.denoiser.autoencoder_shapes()["params"]
        app.describe(args, unet=network, **adapters, **encoder_shapes)
    elif values.preflight:
        # 2. --preflight: compiles the update for a topology that need not be here.
        preflight.run(
            values.preflight,
            training.lower,
            config.mesh,
            params,
            values.preflight_effort,
            cpu_seconds(config.batch_size),
            training.held,
        )
    else:
        # 3. Training, or resuming it.
        mesh = make_mesh(config.mesh)
        training.check(mesh)
        train_stage(training, make_text_encoder(config.text), mesh, args.workdir)


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
