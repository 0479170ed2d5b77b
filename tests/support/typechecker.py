"""The type checker that jaxtyping's import hook applies to the rooms; see tests/conftest.py."""

from beartype import BeartypeConf, beartype

# Rooms whose annotations are checked at every call.
ROOMS = ("classifiers", "imagen_ft", "input_pipeline", "launch.runtime")
# Like static checkers, it accepts an int for a float.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
