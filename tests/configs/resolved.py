"""Writes what every config resolves to, so that a change of it shows as a diff.

python -m tests.configs.resolved

`test_resolved.py` compares the configs with that file. Write it anew only where a config is meant
to change: directories of runs that were made before then belong to another config.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from tests.configs.tables import CONFIGS, VARIANTS, load

FILE = Path(__file__).with_name("resolved.json")


def field_texts(config: ConfigDict, prefix: str = "") -> dict[str, str]:
    """A config's fields by dotted path, each as Python writes it; a placeholder with its type."""
    texts = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, ConfigDict) and len(value):
            texts |= field_texts(value, f"{path}.")
        elif isinstance(value, ConfigDict):
            texts[path] = "{}"
        elif value is None:
            texts[path] = f"None, {config.get_type(key).__name__}"
        else:
            texts[path] = repr(value)
    return texts


def resolve_all() -> dict[str, dict[str, str | None]]:
    """All configs by name; one with arguments only where it differs from that without.

    None stands for a field that is there without the arguments and is not with them.
    """
    resolved = {}
    for path in CONFIGS:
        get_config = load(path).get_config
        plain = resolved[path] = field_texts(get_config())
        for argument in dict.fromkeys(["runlocal", *VARIANTS.get(path, ())]):
            fields = field_texts(get_config(argument))
            removed = dict.fromkeys(plain.keys() - fields.keys())
            changed = {key: text for key, text in fields.items() if plain.get(key) != text}
            resolved[f"{path}:{argument}"] = changed | removed
    return resolved


def changes(old: dict[str, dict], new: dict[str, dict]) -> list[str]:
    """One line for each config that came or went, and for each field that changed."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            lines.append(f"{name} is {'new' if name in new else 'gone'}")
            continue
        # What is not listed is as without arguments.
        absent = "the file's" if ":" in name else None
        for field in sorted(old[name].keys() | new[name].keys()):
            before, after = (fields.get(field, absent) for fields in (old[name], new[name]))
            if before != after:
                lines.append(f"{name}: {field} was {before or 'not there'}, is {after or 'gone'}")
    return lines


def main() -> None:
    """Writes the file."""
    FILE.write_text(json.dumps(resolve_all(), indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
