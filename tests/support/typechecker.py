"""What jaxtyping's import hook puts around the rooms' functions, see tests/conftest.py."""

from beartype import BeartypeConf, beartype

# The sub-rooms whose annotations are checked at every call.
ROOMS = (
    "classifiers.models",
    "classifiers.training",
    "imagen_ft.cascade",
    "imagen_ft.diffusion",
    "imagen_ft.models",
    "imagen_ft.training",
    "input_pipeline",
    "launch.runtime.ema",
    "launch.runtime.images",
    "launch.runtime.layers",
    "launch.runtime.run",
    "launch.runtime.state",
    "launch.runtime.training",
)
# As static checkers do, it takes an int where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
