"""Fields of a public `config.json`: those that must have one value, and those it may set."""

from collections.abc import Mapping
from typing import Any

from launch.errors import InputError


def check_class(config: Mapping[str, Any], name: str, where: Any) -> None:
    """Raises `InputError` unless `name` is the class of diffusers that a config is for."""
    if config.get("_class_name") != name:
        raise InputError(
            f"{where}: _class_name must be {name!r}, got {config.get('_class_name')!r}; choose a "
            "folder with such weights"
        )


def own_fields(
    config: Mapping[str, Any],
    fixed: Mapping[str, tuple[Any, Any]],
    own: Mapping[str, Any],
    where: Any,
    advice: str,
) -> dict[str, Any]:
    """The values of the fields that a config may set, defaults filled in.

    `fixed` has (the library's default, our value) for each field with one supported value; `own`
    has the library's default of each field that may vary, `...` if it must be given.
    Raises `InputError`, naming the field, if a fixed one has another value, an own one is missing,
    or an unknown one is set (not None or False). `where` and `advice` are for messages.
    """
    # 1. A library's default may differ from what we implement: absence does not mean agreement.
    for field, (default, ours) in fixed.items():
        value = config.get(field, default)
        # A list has one value a level.
        if any(one != ours for one in (value if isinstance(value, list) else [value])):
            raise InputError(
                f"{where}: {field} must be {ours!r}, the only one implemented, got "
                f"{value!r}; {advice}"
            )
    # 2. An unknown field may change the computation; one that is off, or private, does not.
    for field in sorted(config.keys() - fixed.keys() - own.keys()):
        if not field.startswith("_") and config[field] not in (None, False):
            raise InputError(f"{where}: {field}={config[field]!r} is not implemented; {advice}")
    # 3. Fill in the defaults.
    values = {field: config.get(field, default) for field, default in own.items()}
    missing = [field for field, value in values.items() if value is ...]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing; {advice}")
    return values
