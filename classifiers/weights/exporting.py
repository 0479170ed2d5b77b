"""From runs of classifiers.train to other libraries' files."""

from pathlib import Path

import flax.traverse_util
import ml_collections
from etils import epath

from classifiers import from_config
from classifiers.weights.config_files import write_configs
from classifiers.weights.positions import trained_size
from classifiers.weights.tensor_rules import tensor_rules
from classifiers.weights.weight_files import save, trained_channels
from launch.errors import InputError
from launch.files import is_local
from launch.runtime.atomic_folder import atomic_folder, check_target
from launch.runtime.config import plain
from launch.runtime.run import CLASSIFIER, Run


def export_run(source: str, target: str, layout: str, seed: int = 0) -> None:
    """Writes a seed of a run, or an import, in another library's layout, into a new local folder.

    Raises:
        InputError: there is no such seed, it is unfinished, or the layout has no such model.
    """
    # 1. Check target, run and seed before anything is read.
    if not is_local(target):
        raise InputError(f"--to must be a local folder for safetensors, got {target}; choose one")
    check_target(epath.Path(target))
    run = Run.open(source)
    config = run.config
    if run.kind != CLASSIFIER:
        raise InputError(f"--from must be a run of classifiers.train, got {source}")
    if seed >= config.seeds:
        raise InputError(
            f"--seed must be from 0 to {config.seeds - 1}, the seeds of {source}, got {seed}"
        )
    # 2. Rebuild the model from the shapes of the checkpoint.
    run = run.seeds[seed]
    shapes = run.shapes()
    num_classes = shapes["params"]["head"]["bias"].shape[0]
    model = from_config.make_model(config.model, num_classes)
    tensor_rules(model, layout)  # raises if the layout has no such model
    # 3. Read, and write the folder under another name until it is whole.
    variables = run.variables(shapes)
    flat = flax.traverse_util.flatten_dict(shapes, sep=".")
    # Positions tell, where there are any.
    size = trained_size(flat, model) or _evaluated_size(config)
    image_shape = (size, size, trained_channels(flat))
    with atomic_folder(epath.Path(target)) as folder:
        save(Path(folder), variables, model, image_shape, layout)
        write_configs(Path(folder), model, image_shape, layout, plain(config.get("evaluation")))


def _evaluated_size(config: ml_collections.ConfigDict) -> int:
    for name in ("evaluation", "augment"):
        if size := (config.get(name) or {}).get("size"):
            return size
    return 224
