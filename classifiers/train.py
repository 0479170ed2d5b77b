r"""Trains classifiers on real images, synthetic images, or both; one run per seed.

python -m classifiers.train --config=configs/digits/classifier.py:arm=real --workdir=runs/real
python -m classifiers.train --config=configs/cifar10/resnet.py:arm=real+synthetic,k=2 \
    --workdir=runs/both
python -m classifiers.train --config=configs/imagenet/deit_l.py --preflight=v4:4x4x4

The same command resumes where it stopped. Seed n is trained in the folder seed_n of the run
directory, and learning_curves.png shows how all seeds went. All images of config.train_sources
count the same, unless config.synthetic_weight says which share of every batch is synthetic;
config.loader_workers processes read them: 0 means threads, -1 one process per CPU.
config.augment, repeats and mix say what happens to images before the model sees them.
config.init_from names a run to start from, or weights that classifiers.weights imported.
config.vmap_seeds trains all seeds as one program: faster where one does not fill a chip.
goodput.jsonl in a seed's folder says how every attempt spent its time. When three attempts in a row
have failed or were killed at the same step, no other starts before you remove that file.
"""

import functools

import ml_collections
from absl import flags

from classifiers import from_config
from classifiers.training import vmap_seeds
from classifiers.training.train_seeds import train_seeds
from classifiers.training.training import Training
from input_pipeline import sources
from input_pipeline.augment import policy
from input_pipeline.batches.mixture import check_share
from input_pipeline.batches.rates import cpu_seconds
from input_pipeline.sources.lacking import lacking_in_source
from launch.runtime import app
from launch.runtime.devices import joining
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.optional_fields import Defaults, below, unset
from launch.runtime.preflight import preflight
from launch.runtime.training.loop import check_fields, lacking_in_training


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of this command."""
    joining.define_flags(values)
    preflight.define_flags(values)


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config may leave out and the command line can set."""
    # With the defaults that training takes where a field is left out.
    own = {"num_classes": unset(int), "vmap_seeds": False, "repeats": 1, "init_from": ""}
    own |= {"synthetic_weight": unset(float), "synthetic_loss_weight": 1.0}
    mix = {"mixup": 0.0, "cutmix": 0.0, "switch": 0.5, "probability": 1.0}
    mix |= {"per_example": False, "by_domain": False}
    fields = {
        **below("", config, own | {"loss": "cross_entropy"}),
        **below("mix", config.get("mix") or {}, mix),
        **policy.lacking_in_augment(config.get("augment") or {}),
        **policy.lacking_in_evaluation(config.get("evaluation") or {}),
        **from_config.lacking_in_model(config.model),
        **lacking_in_training(config),
        **lacking_in_source("evaluation_source", config.evaluation_source),
    }
    for name, spec in config.train_sources.items():
        fields |= lacking_in_source(f"train_sources.{name}", spec)
    return fields


def main(args: app.Arguments) -> None:
    """Runs the command."""
    config, values = args.config, args.flags
    # 1. The model's input: from the config if it says it, else from the images.
    check_fields(config)
    load_evaluation = functools.cache(lambda: sources.load(config.evaluation_source))
    image_input = from_config.expected_input(config)
    # A dry run or a preflight works without the images if the config says their shape.
    if image_input is None or not (args.dry_run or values.preflight):
        evaluation = load_evaluation()
        actual = len(evaluation.class_names), from_config.image_shape(config, evaluation)
        from_config.check_input(image_input, actual)
        image_input = actual
    # 2. Build everything from the config; all wrong fields end here, before a file is written.
    training = Training.of(config, *image_input)
    from_config.make_augment(config)  # only to check its numbers
    if config.get("synthetic_weight") is not None:
        check_share(config.synthetic_weight)
    # 3. Describe, compile for a topology, or train.
    params = training.abstract.variables["params"]
    if args.dry_run:
        app.describe(args, model=params)
    elif values.preflight:
        vmap_seeds.check_preflight(config)
        preflight.run(
            values.preflight,
            training.lower,
            config.mesh,
            params,
            values.preflight_effort,
            None if config.in_memory else cpu_seconds(config.batch_size),
            training.abstract.held,
        )
    else:
        mesh = make_mesh(config.mesh)
        training.check(mesh)
        vmap_seeds.check(config)
        train_seeds(training, load_evaluation(), mesh, args.workdir)


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
