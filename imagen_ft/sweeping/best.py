"""The best setting as a config file, which imagen_ft.generate and imagen_ft.sample read."""

import math
import pprint
from typing import Any

import ml_collections
from etils import epath

from launch.files import write_atomic

FILE = "best.py"
_TEXT = '''r"""{title}

python -m imagen_ft.generate --config={path} --workdir=DIR
python -m imagen_ft.sample --config={path} --workdir=DIR

{why}
"""

from ml_collections import ConfigDict

CONFIG = {config}


def get_config():
    return ConfigDict(CONFIG)
'''


class _Number:
    """A float as Python reads it, where that is no literal."""

    def __init__(self, value: float):
        self._value = value

    def __repr__(self) -> str:
        return f'float("{self._value}")'


def write(path: epath.Path, config: ml_collections.ConfigDict, title: str, why: str) -> None:
    """Writes a config file.

    Args:
        path: its name.
        config: what it gives.
        title: its first line.
        why: the last lines of what it says of itself.
    """
    fields = pprint.pformat(_literal(config.to_dict()), width=100, sort_dicts=False)
    text = _TEXT.format(title=title, path=path, why=why, config=fields)
    write_atomic(path, text.encode())


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_literal(inner) for inner in value)
    if isinstance(value, float) and not math.isfinite(value):
        return _Number(value)
    return value
