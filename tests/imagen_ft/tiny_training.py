"""A run of imagen_ft.finetune that compiles and trains in seconds, with everything switched on."""

from ml_collections import ConfigDict

from configs.digits import pretrain_sr8

STEPS, BATCH = 20, 16


def stage():
    """8 px super-resolution with a learned variance, as IF's."""
    return dict(
        size=8,
        low_size=4,
        channels=1,
        schedule="squaredcos_cap_v2",
        learned_variance=True,
        unet=dict(
            block_out_channels=(8,),
            layers_per_block=1,
            attention=(False,),
            cross_attention_dim=8,
            attention_head_dim=8,
            num_groups=4,
            cross_num_groups=4,
            pooling_heads=2,
            dtype="float32",
        ),
    )


def get_config(arg=""):
    """Twenty steps; saved every fourth, evaluated every fifth, drawn at the tenth and last."""
    config = pretrain_sr8.get_config()
    config.stage, config.train_source.split = ConfigDict(stage()), "train"
    config.total_steps, config.batch_size = STEPS, BATCH
    config.optimizer.learning_rate, config.optimizer.schedule = 1e-3, "constant"
    config.loss.vlb_weight = 1e-3
    config.ema = ConfigDict(dict(main=dict(decay=0.9), slow=dict(decay=0.99)))
    config.log_every, config.checkpoint_every, config.evaluate_every = 1, 4, 5
    config.evaluation_draws, config.pictures_every = 1, 10
    config.pictures = dict(
        count=2,
        sampler=dict(name="ddim", num_steps=2, eta=0.0),
        guidance_weight=2.0,
        threshold_percentile=100.0,
    )
    config.best = dict(metric="validation_loss", mode="min")
    return config
