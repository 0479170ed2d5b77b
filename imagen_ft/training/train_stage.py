"""Trains one stage, from opening its images to the last checkpoint."""

import functools

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from imagen_ft.text.encoders import TextEncoder
from imagen_ft.training import curves, kept_latents, warm_start
from imagen_ft.training.evaluation import make_evaluation
from imagen_ft.training.images import make_reader, open_images, to_size
from imagen_ft.training.pictures import make_pictures
from imagen_ft.training.sampled_metric import SampledMetric, is_measured, metric_name
from imagen_ft.training.training import Training
from launch.cli import say
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.devices.mesh import replicate
from launch.runtime.training.loop import fit
from launch.runtime.workdir import claim_workdir


def train_stage(training: Training, encoder: TextEncoder, mesh: Mesh, workdir: epath.Path) -> None:
    """Trains a stage, or resumes it.

    All that could be wrong is read before anything is written: images, text, weights, the extractor
    of a metric.

    Raises:
        InputError: images, weights or the run directory do not fit the config.
    """
    # 1. Images.
    config = training.config
    images = open_images(training)
    # 2. What the run is made from: with other text, weights or images a resumed run would be
    # another one.
    text_digest = {"text": encoder.digest} if encoder.digest else {}
    inputs = text_digest | warm_start.check_start(training, encoder) | images.digests
    # 3. Text. The table can be large: it is kept in the precision that the network computes in.
    dtype = training.denoiser.model.dtype
    text_table: np.ndarray = encoder.embed(images.prompts).astype(dtype)
    null_text: np.ndarray = encoder.null()[0].astype(dtype)
    text = replicate(mesh, text_table), replicate(mesh, null_text)
    # 4. Weights that are not trained: a teacher's, those that adapters adapt, the auto-encoder's.
    base = warm_start.load_base(training, mesh)
    autoencoder, digests = warm_start.load_latents(training, mesh)
    inputs |= digests
    keeping = kept_latents.look(
        training, images.train, to_size(training), digests.get("autoencoder", "")
    )
    # 5. What watches the run: pictures and the sampled metric.
    network = training.network_on(mesh, base, autoencoder)
    pictures = None
    if config.get("pictures_every", 0):
        pictures = make_pictures(training, images, mesh, text_table, null_text, network)
    metric = None
    if is_measured(config):
        metric = SampledMetric(
            config,
            mesh,
            workdir,
            images.prompts,
            images.evaluation,
            text_table,
            null_text,
            network,
        )
        metric.open()
    # 6. From here on files are written: the run directory, features of real images, latents.
    run_name = claim_workdir(workdir, config, inputs)
    if metric:
        metric.prepare()
    train = keeping.fill(training) if keeping else images.train
    # 7. The loop.
    with jax.set_mesh(mesh):
        fit(
            workdir=workdir,
            run_name=run_name,
            config=config,
            mesh=mesh,
            abstract=training.abstract,
            create=functools.partial(warm_start.create, training, mesh, base),
            train_step=training.step(mesh, *text, base, None if keeping else autoencoder),
            batches=make_reader(training, train, mesh),
            evaluate=make_evaluation(training, images.evaluation, mesh, text, network, base),
            metric=metric,
            pictures=pictures,
            label=workdir.name,
        )
    # 8. The curves, and what to do next.
    name = metric_name(config.evaluation_metric) if metric else ""
    on_first_process(lambda: curves.write(workdir, name))
    if jax.process_index() == 0:
        say(f"{workdir.name}: {what_next(workdir, training.denoiser.low_size, images.prompts[0])}")


def what_next(workdir: epath.Path, low_size: int, prompt: str) -> str:
    """What to do with a trained stage, in a line; `low_size` is 0 for a base."""
    runs = f"['RUN of {low_size} px', '{workdir}']" if low_size else f"'{workdir}'"
    return (
        f"see learning_curves.png there; Cascade.load({runs}).sample({prompt!r}) of "
        "imagen_ft.cascade samples from it"
    )
