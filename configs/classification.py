"""The arms that the configs of classifiers share."""


def arm_sources(arm: str, real: dict, synthetic: dict, **others: dict) -> dict:
    """The training sources of an arm: real, synthetic, their plain union, or one of `others`."""
    arms = {
        "real": dict(real=real),
        "synthetic": dict(synthetic=synthetic),
        "real+synthetic": dict(real=real, synthetic=synthetic),
        **{name: dict(real=source) for name, source in others.items()},
    }
    if arm not in arms:
        raise ValueError(f"arm must be one of {', '.join(arms)}, got {arm}")
    return arms[arm]
