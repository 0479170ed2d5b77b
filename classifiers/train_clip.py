"""Trains CLIP on images with texts: real ones, synthetic ones, or both.

python -m classifiers.train_clip --config=configs/clip/tiny.py --workdir=runs/clip/tiny
python -m classifiers.train_clip --config=configs/clip/tiny.py:runlocal --workdir=runs/clip/try
python -m classifiers.train_clip --config=configs/clip/vit_b16.py --dry_run

The same command resumes where it stopped, and learning_curves.png shows how it went. A source of
config.train_sources has texts if its field `caption` says where they are (a column, a field, a
file's suffix, the prompt of a synthetic image); images without a text get their class name in a
sentence of config.templates. config.draw is `union`, where all images count the same, or
`one_of_each`, where image n of every source has the same caption, and one of them is drawn at every
step (Fan et al. 2024, section 5). The loss is over the batch of all devices, of which
config.loss_chunk rows of logits exist at a time. The zero-shot accuracy on config.evaluation_source
is measured at intervals. config.tokenizer is the folder of a tokenizer, or `bytes`, which needs no
files; config.init_from names a run of CLIP to start from, or weights that classifiers.weights
imported.
"""

import ml_collections
from absl import flags

from classifiers import from_config
from classifiers.contrastive.train_pairs import train_pairs
from classifiers.contrastive.training import Training, lacking_in_clip
from input_pipeline import sources
from input_pipeline.augment import policy
from input_pipeline.batches.mixture import check_share
from input_pipeline.batches.rates import cpu_seconds
from input_pipeline.sources.lacking import lacking_in_source
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.devices import joining
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.optional_fields import Defaults, Mixed, below, unset
from launch.runtime.preflight import preflight
from launch.runtime.training.loop import check_fields, check_training, lacking_in_training


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags of this command."""
    joining.define_flags(values)
    preflight.define_flags(values)


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config may leave out and the command line can set."""
    # With the defaults that training takes where a field is left out.
    own = {"init_from": "", "loss_chunk": 0, "draw": "union", "synthetic_weight": unset(float)}
    sentences = Mixed("1", (str, tuple))
    own |= {"templates": sentences, "evaluation_templates": sentences}
    fields = {
        **below("", config, own),
        **lacking_in_clip(config.clip),
        **policy.lacking_in_augment(config.get("augment") or {}),
        **policy.lacking_in_evaluation(config.get("evaluation") or {}),
        **lacking_in_training(config),
        **lacking_in_source("evaluation_source", config.evaluation_source),
    }
    for name, spec in config.train_sources.items():
        fields |= lacking_in_source(f"train_sources.{name}", spec)
    return fields


def main(args: app.Arguments) -> None:
    """Runs the command."""
    config, values = args.config, args.flags
    # 1. Check the config.
    check_fields(config)
    if config.get("synthetic_weight") is not None:
        check_share(config.synthetic_weight)
    from_config.make_augment(config)  # these two only to check their numbers
    from_config.make_transform(config)
    # 2. Build the network and its update; nothing is allocated yet.
    size = config.evaluation.size
    training = Training.of(config, (size, size, config.channels))
    # 3. Describe, compile for a topology, or train.
    params = training.abstract.variables["params"]
    if args.dry_run:
        app.describe(args, clip=params)
    elif values.preflight:
        preflight.run(
            values.preflight,
            training.lower,
            config.mesh,
            params,
            values.preflight_effort,
            cpu_seconds(config.batch_size),
            training.abstract.held,
        )
    else:
        evaluation = sources.load(config.evaluation_source)
        found = from_config.image_shape(config, evaluation)
        if found != training.image_shape:
            raise InputError(
                f"config.channels must be {found[2]}, as in config.evaluation_source, got "
                f"{config.channels}; set it to that"
            )
        mesh = make_mesh(config.mesh)
        check_training(config, mesh)
        train_pairs(training, evaluation, mesh, args.workdir)


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
