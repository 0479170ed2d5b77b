"""The arms that the configs of classifiers share."""


def arm_sources(arm: str, real: dict, generated: dict, **others: dict) -> dict:
    """The training sources of an arm: real, generated, their plain union, or one of `others`."""
    arms = {
        "real": dict(real=real),
        "generated": dict(generated=generated),
        "real+generated": dict(real=real, generated=generated),
        **{name: dict(real=source) for name, source in others.items()},
    }
    if arm not in arms:
        raise ValueError(f"arm must be one of {', '.join(arms)}, got {arm}")
    return arms[arm]
