"""What jaxtyping's import hook puts around the rooms' functions, see tests/conftest.py."""

from beartype import BeartypeConf, beartype

# The rooms whose annotations are checked at every call.
ROOMS = ("classifiers", "imagen_ft", "input_pipeline", "launch.runtime")
# As static checkers do, it takes an int where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
