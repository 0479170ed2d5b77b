"""Trains CLIP, from opened images to the last checkpoint."""

import functools

import jax
from etils import epath
from jax.sharding import Mesh

from classifiers.contrastive import curves, pairs, words
from classifiers.contrastive.evaluation import make_evaluation
from classifiers.contrastive.training import Training
from input_pipeline.source import Source, check_labels
from launch.cli import say
from launch.files import json_digest
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.training.loop import fit
from launch.runtime.workdir import claim_workdir


def train_pairs(training: Training, evaluation: Source, mesh: Mesh, workdir: epath.Path) -> None:
    """Trains CLIP, or resumes it.

    Raises:
        InputError: images, captions, weights, the tokenizer or the run directory do not fit the
            config.
    """
    # 1. Open the tokenizer and the images.
    config, text = training.config, training.model.text
    contents = words.read_files(config.tokenizer, text.max_length)
    tokenizer = words.open_tokenizer(contents, text)
    opened, whole = pairs.open_pairs(config)
    pairs.check_images(config, opened, training.image_shape)
    check_labels(evaluation)
    # 2. Checksums of all that the run depends on: it resumes only with the same.
    inputs = {name: digest for name, source in opened.items() if (digest := source.digest())}
    texts = {name: data.decode("latin-1") for name, data in contents.items()}
    inputs["tokenizer"] = json_digest(texts)
    if training.start:
        inputs["init_from"] = training.start.digest
    # 3. Readers and evaluation, then the run directory: nothing is written before all fits.
    batches = pairs.make_reader(config, opened, whole, tokenizer, training.image_shape, mesh)
    accuracy = make_evaluation(training, evaluation, tokenizer, mesh)
    run_name = claim_workdir(workdir, config, inputs)
    on_first_process(lambda: words.keep(contents, workdir))
    # 4. Train; layers find the mesh here when they shard activations by the names of its axes.
    with jax.set_mesh(mesh):
        fit(
            workdir=workdir,
            run_name=run_name,
            config=config,
            mesh=mesh,
            abstract=training.abstract,
            create=functools.partial(training.create, mesh),
            train_step=training.step(mesh),
            batches=batches,
            evaluate=lambda state: {"zero_shot_accuracy": accuracy(state.inference_variables)},
            label=workdir.name,
        )
    # 5. Draw how it went.
    on_first_process(lambda: curves.write(workdir))
    if jax.process_index() == 0:
        say(
            f"{workdir.name}: see learning_curves.png in {workdir}; classifiers.zero_shot measures "
            "it on other sets"
        )
