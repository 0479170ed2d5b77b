"""Trains all seeds of a run, from opened images to the last checkpoints."""

import functools
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from classifiers import from_config
from classifiers.training import learning_curves, vmap_seeds, warm_start
from classifiers.training.evaluation import make_evaluation
from classifiers.training.images import TrainingImages, make_reader, open_images
from classifiers.training.training import Training
from input_pipeline.source import Source
from launch.cli import say
from launch.runtime.devices.distributed import on_first_process
from launch.runtime.run_record import seed_name
from launch.runtime.state import TrainState
from launch.runtime.training.loop import fit
from launch.runtime.workdir import claim_workdir


def train_seeds(training: Training, evaluation: Source, mesh: Mesh, workdir: epath.Path) -> None:
    """Trains or resumes every seed: in turn, or all at once with `config.vmap_seeds`.

    Raises:
        InputError: images, weights or the run directory do not fit the config.
    """
    # 1. Open weights and images; checksums of both tie the run directory to them.
    config = training.config
    start_digests = warm_start.check_start(training)
    images = open_images(training, evaluation)
    # 2. Claim the run directory: from here on the same command resumes.
    run_name = claim_workdir(workdir, config, images.digests | start_digests)
    on_first_process(lambda: from_config.save_class_names(workdir, evaluation.class_names))
    # 3. Train; layers find the mesh here when they shard activations by the names of its axes.
    train = _train_together if config.get("vmap_seeds") else _train_in_turn
    with jax.set_mesh(mesh):
        train(training, images, mesh, workdir, run_name)
    # 4. Draw how it went.
    on_first_process(lambda: learning_curves.write(workdir, config.seeds))
    if jax.process_index() == 0:
        say(
            f"{workdir.name}: see learning_curves.png in {workdir}; classifiers.evaluate with "
            f"--workdir={workdir.parent} compares it with the runs next to it"
        )


def _train_in_turn(
    training: Training, images: TrainingImages, mesh: Mesh, workdir: epath.Path, run_name: str
) -> None:
    # Compiled once: the step and the evaluation are the same for all seeds.
    accuracy = make_evaluation(training, images.evaluation, mesh)
    train_step = training.step(mesh)
    for seed in range(training.config.seeds):
        fit(
            workdir=workdir / f"seed_{seed}",
            run_name=seed_name(run_name, f"seed_{seed}"),
            config=training.config,
            mesh=mesh,
            abstract=training.abstract,
            create=functools.partial(warm_start.create, training, mesh, seed),
            train_step=train_step,
            batches=make_reader(training, images.train, seed, mesh),
            evaluate=lambda state: {"validation_accuracy": accuracy(state.inference_variables)},
            label=f"{workdir.name} seed {seed}",
        )


def _train_together(
    training: Training, images: TrainingImages, mesh: Mesh, workdir: epath.Path, run_name: str
) -> None:
    count, stacked = training.config.seeds, vmap_seeds.stacked(training)
    accuracy = make_evaluation(training, images.evaluation, mesh)

    def evaluate(state: TrainState) -> dict[str, Any]:
        by_seed = [accuracy(vmap_seeds.variables_of(state, seed)) for seed in range(count)]
        return {
            "validation_accuracy": np.mean(by_seed),
            "validation_accuracy_by_seed": np.array(by_seed),
        }

    def create() -> TrainState:
        states = [warm_start.create(training, mesh, seed) for seed in range(count)]
        return vmap_seeds.create(states, mesh)

    readers = [make_reader(training, images.train, seed, mesh) for seed in range(count)]
    # One loop for all seeds: state and batches have an axis for them, metrics are means.
    state = fit(
        workdir=workdir / vmap_seeds.FOLDER,
        run_name=seed_name(run_name, vmap_seeds.FOLDER),
        config=training.config,
        mesh=mesh,
        abstract=stacked.abstract,
        create=create,
        train_step=stacked.step(mesh),
        batches=vmap_seeds.batches(readers),
        evaluate=evaluate,
        label=f"{workdir.name} {count} seeds",
    )
    # Evaluation and warm starts read seed_n, however the seeds were trained.
    vmap_seeds.write(workdir, run_name, state, training.config.total_steps, count)
