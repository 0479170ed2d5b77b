"""What training begins with, where nothing is to be resumed: another run's weights, or new ones."""

import dataclasses
import functools
from typing import Any

import flax.traverse_util
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from classifiers import from_config
from classifiers.models import presets
from classifiers.models.presets import Classifier
from classifiers.training.update import Training
from classifiers.weights.loading import HEADS, POSITIONS, resized
from launch.errors import InputError
from launch.runtime.run import CLASSIFIER, Run
from launch.runtime.state import TrainState, create_state

# What may differ from the run that it begins with: none of it changes what the weights mean.
_FREE = {"num_classes", "dropout", "drop_path", "momentum", "remat", "dtype", "layer_scale"}
_OWN = {"parent", "name"}


def check_start(config: ml_collections.ConfigDict, model: Classifier) -> dict[str, str]:
    """Looks at what `config.init_from` names: digests for `claim_workdir`.

    Args:
        config: `init_from`, a run of classifiers.train or an import of classifiers.weights, '' for
            new weights; `seeds`.
        model: that is trained.

    Raises:
        InputError: it is missing, unfinished, damaged or another model's.
    """
    path = config.get("init_from")
    if not path:
        return {}
    run = Run.open(path)
    if run.kind != CLASSIFIER:
        raise InputError(f"config.init_from={path} is no run of classifiers.train or import")
    theirs = from_config.make_model(run.config.model, model.num_classes)
    if type(theirs) is not type(model):
        raise InputError(
            f"config.init_from={path} is a {type(theirs).__name__}, config.model a "
            f"{type(model).__name__}: name a run of the same model"
        )
    for field in dataclasses.fields(model):
        ours, other = getattr(model, field.name), getattr(theirs, field.name)
        if field.name not in _FREE | _OWN and ours != other:
            raise InputError(
                f"config.init_from={path} has model.{field.name}={other!r}, config.model "
                f"{ours!r}: give both the same"
            )
    seeds = range(min(config.seeds, run.config.seeds))
    return {f"init_from_{seed}": run.seed(seed).digest() for seed in seeds}


def create(training: Training, seed: int, mesh: Mesh) -> TrainState:
    """The state of step 0: seed n begins with seed n of the run there, if that has as many.

    Learned positions are resized to the images' size, see `vit.resize_positions`; the heads are new
    where the number of classes is another.

    Args:
        training: what is trained; `config.init_from`, see `check_start`.
        seed: of new weights, and which of the run's.
        mesh: where the state will live.

    Raises:
        InputError: the weights do not fit the model.
    """
    path = training.config.get("init_from")
    model, image_shape = training.model, training.image_shape
    if not path:
        init = functools.partial(from_config.init_model, model, image_shape=image_shape)
        args: tuple[Any, ...] = (jax.random.key(seed),)
    else:
        run = Run.open(path)
        run = run.seed(seed % run.config.seeds)
        variables = run.variables(run.shapes())
        init = lambda variables: variables  # noqa: E731
        args = (_fitted(variables, model, image_shape, path),)
    return create_state(init, args, training.tx, training.averages, mesh)


def _fitted(
    variables: dict[str, Any], model: Classifier, image_shape: tuple[int, int, int], path: str
) -> dict[str, Any]:
    flatten = flax.traverse_util.flatten_dict
    held = flatten(variables, sep=".")
    wanted = flatten(presets.variable_shapes(model, image_shape), sep=".")
    for name in sorted(held.keys() ^ wanted.keys()):
        raise InputError(f"config.init_from={path} and config.model do not agree on {name}")
    for name, leaf in wanted.items():
        if held[name].shape == leaf.shape:
            continue
        if name == POSITIONS:
            held[name] = resized(np.asarray(held[name]), model, image_shape, path)
        elif name.split(".")[1] in HEADS:
            held[name] = np.zeros(leaf.shape, leaf.dtype)
        else:
            raise InputError(
                f"config.init_from={path}: {name} has the shape {held[name].shape}, "
                f"config.model's has {leaf.shape}"
            )
    return flax.traverse_util.unflatten_dict(held, sep=".")
