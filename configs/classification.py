"""What the configs of classifiers share: the arms, and the fields that few of them change."""

from typing import Any

from ml_collections import ConfigDict, config_dict


def arm_sources(arm: str, real: dict, generated: dict, **others: dict) -> dict:
    """The training sources of an arm: real, generated, their plain union, or one of the others.

    Raises:
        ValueError: there is no such arm.
    """
    arms = {
        "real": dict(real=real),
        "generated": dict(generated=generated),
        "real+generated": dict(real=real, generated=generated),
        **{name: dict(real=source) for name, source in others.items()},
    }
    if arm not in arms:
        raise ValueError(f"arm={arm}: there is {', '.join(arms)}")
    return arms[arm]


def make_config(**fields: Any) -> ConfigDict:
    """A run of classifiers.train, plain but for what is given."""
    return ConfigDict(
        dict(
            in_memory=False,
            loader_workers=0,
            synthetic_weight=config_dict.placeholder(float),
            synthetic_loss_weight=1.0,
            seeds=1,
            vmap_seeds=False,
            init_from="",
            repeats=1,
            mix={},
            loss="cross_entropy",
            label_smoothing=0.0,
            ema={},
            mesh=dict(data=-1, fsdp=1, tensor=1),
            keep_checkpoints=2,
        )
        | fields
    )
