"""The weights that training starts from if there is nothing to resume: another run's, or new."""

import dataclasses
import functools

import flax.traverse_util
import jax
import numpy as np
from jax.sharding import Mesh

from classifiers import from_config
from classifiers.models import presets
from classifiers.models.presets import Classifier
from classifiers.models.vit import ViT
from classifiers.training.training import Training
from classifiers.weights.positions import POSITIONS, resized
from classifiers.weights.weight_files import HEADS
from launch.errors import InputError
from launch.runtime.devices.mesh import fetch, with_shardings
from launch.runtime.run import CLASSIFIER
from launch.runtime.state import TrainState, create_state, state_of
from launch.runtime.types import Variables

# Fields that may differ from the run it starts from: they do not change what weights mean.
_MAY_DIFFER = {"num_classes", "dropout", "drop_path", "momentum", "remat", "dtype", "layer_scale"}
# Fields of every Flax module.
_MODULE_FIELDS = {"parent", "name"}


def check_start(training: Training) -> dict[str, str]:
    """Checks the run that `config.init_from` names; returns its checksums for `claim_workdir`.

    Raises:
        InputError: it is missing, unfinished, damaged or of another model.
    """
    config, model, run = training.config, training.model, training.start
    if run is None:
        return {}
    path = config.init_from
    if run.kind != CLASSIFIER:
        raise InputError(
            f"config.init_from={path} is not a run of classifiers.train or an import; use one of "
            "these"
        )
    # Our number of classes: the head may differ.
    start_model = from_config.make_model(run.config.model, model.num_classes)
    if type(start_model) is not type(model):
        raise InputError(
            f"config.init_from={path} must be a {type(model).__name__}, as config.model, got a "
            f"{type(start_model).__name__}; use a run of the same model"
        )
    # Whatever else decides the meaning of weights must be the same.
    for field in dataclasses.fields(model):
        value, start_value = getattr(model, field.name), getattr(start_model, field.name)
        if field.name not in _MAY_DIFFER | _MODULE_FIELDS and value != start_value:
            raise InputError(
                f"config.init_from={path}: model.{field.name} must be {value!r}, as in "
                f"config.model, got {start_value!r}; give both the same"
            )
    # Only the seeds that are used: others may be unfinished.
    used = run.seeds[: config.seeds]
    return {f"init_from_{seed}": start.digest() for seed, start in enumerate(used)}


def create(training: Training, mesh: Mesh, seed: int) -> TrainState:
    """The state of step 0: seed n starts from seed n of the run there, modulo how many it has.

    Raises:
        InputError: the weights do not fit the model.
    """
    tx, averages = training.tx, training.decays
    model, image_shape = training.model, training.image_shape
    if training.start is not None:
        starts, path = training.start.seeds, training.config.init_from
        start = starts[seed % len(starts)]
        # Restored straight into the mesh's shardings.
        variables = start.variables(with_shardings(mesh, start.shapes()))
        return state_of(_fit_variables(variables, model, image_shape, path), tx, averages, mesh)
    init = functools.partial(from_config.init_model, model, image_shape=image_shape)
    return create_state(init, (jax.random.key(seed),), tx, averages, mesh)


def _fit_variables(
    variables: Variables, model: Classifier, image_shape: tuple[int, int, int], path: str
) -> Variables:
    flatten = flax.traverse_util.flatten_dict
    arrays = flatten(variables, sep=".")
    shapes = flatten(presets.variable_shapes(model, image_shape), sep=".")
    # 1. Both have the same arrays.
    for name in sorted(arrays.keys() ^ shapes.keys()):
        raise InputError(
            f"config.init_from={path} and config.model differ in {name}; use a run of the same "
            "model"
        )
    # 2. Shapes may differ where a rule exists: positions are resized, heads start at zero.
    for name, leaf in shapes.items():
        if arrays[name].shape == leaf.shape:
            continue
        if name == POSITIONS and isinstance(model, ViT):
            arrays[name] = resized(fetch(arrays[name]), model, image_shape, path)
        elif name.split(".")[1] in HEADS:
            arrays[name] = np.zeros(leaf.shape, leaf.dtype)
        else:
            raise InputError(
                f"config.init_from={path}: {name} must have the shape {leaf.shape} of "
                f"config.model, got {arrays[name].shape}; use a run of the same model"
            )
    return flax.traverse_util.unflatten_dict(arrays, sep=".")
