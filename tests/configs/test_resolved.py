"""Every config is what it was when `resolved.json` was written."""

import json

from ml_collections import ConfigDict, config_dict

from tests.configs import resolved


def test_configs_are_what_they_were():
    lines = resolved.changes(json.loads(resolved.FILE.read_text()), resolved.resolve_all())
    end = "if that is meant: python -m tests.configs.resolved"
    assert not lines, "\n".join(["these configs changed:", *lines, end])


def test_every_change_has_a_line():
    old = {
        "a.py": {"rate": "0.1", "size": "(1, 2)", "mix.cutmix": "1.0", "weight": "None, float"},
        "a.py:host": {"rate": "0.2", "mix.cutmix": None},
        "b.py": {},
    }
    new = {
        "a.py": {"rate": "0.1", "size": "[1, 2]", "weight": "None, int", "loss": "'bce'"},
        "a.py:host": {"mix.cutmix": "1", "loss": None},
        "c.py": {},
    }
    assert resolved.changes(old, old) == []
    assert resolved.changes(old, new) == [
        "a.py: loss was not there, is 'bce'",
        "a.py: mix.cutmix was 1.0, is gone",
        "a.py: size was (1, 2), is [1, 2]",
        "a.py: weight was None, float, is None, int",
        "a.py:host: loss was the file's, is gone",
        "a.py:host: mix.cutmix was not there, is 1",
        "a.py:host: rate was 0.2, is the file's",
        "b.py is gone",
        "c.py is new",
    ]


def test_fields_say_their_types():
    config = ConfigDict(dict(rate=1.0, count=1, size=(1,), mix={}, model=dict(name="vit")))
    config.weight, config.names = config_dict.placeholder(float), ["a"]
    assert resolved.field_texts(config) == {
        "rate": "1.0",
        "count": "1",
        "size": "(1,)",
        "mix": "{}",
        "model.name": "'vit'",
        "weight": "None, float",
        "names": "['a']",
    }
