"""A run of classifiers.train that compiles and trains in seconds, with much switched on."""

from ml_collections import ConfigDict

from configs import arguments
from configs.digits import classifier

STEPS, BATCH = 20, 16
NETS = {
    "resnet": dict(
        name="resnet", stage_sizes=(1, 1), width=8, bottleneck=False, small_stem=True, dropout=0.25
    ),
    "vit": dict(name="vit", width=16, depth=2, num_heads=2, patch_size=4, drop_path=0.2),
}
OPTIMIZERS = {
    "resnet": dict(name="sgd", nesterov=True),
    "vit": dict(name="adamw", no_decay=("positions", "token")),
}


def get_config(arg=""):
    """Twenty steps; saved every fourth, evaluated every fifth."""
    args = arguments.parse(arg, net="resnet", vmap_seeds=False)
    config = ConfigDict(classifier.get_config("runlocal").to_dict())
    config.seeds, config.vmap_seeds = (2, True) if args["vmap_seeds"] else (1, False)
    config.model = NETS[args["net"]]
    config.optimizer = dict(
        OPTIMIZERS[args["net"]],
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=4,
        weight_decay=0.05,
        clip_norm=1.0,
    )
    config.total_steps, config.batch_size, config.evaluation_batch_size = STEPS, BATCH, 50
    config.mix = dict(mixup=0.8, cutmix=1.0)
    config.ema = dict(main=dict(decay=0.9))
    config.log_every, config.checkpoint_every, config.evaluate_every = 1, 4, 5
    return config
