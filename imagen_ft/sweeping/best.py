"""Writes the best setting as a config file for imagen_ft.generate and imagen_ft.sample."""

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
    """A float that has no literal in Python: infinity and NaN."""

    def __init__(self, value: float):
        self._value = value

    def __repr__(self) -> str:
        return f'float("{self._value}")'


def write(path: epath.Path, config: ml_collections.ConfigDict, title: str, why: str) -> None:
    """Writes a config file; `title` is its first line, `why` the last paragraph of its opening."""
    # pprint writes Python, and keeps the order of fields.
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
