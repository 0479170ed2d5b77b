"""Fields of a public `config.json`: those with one value that we compute, and those it may set."""

from collections.abc import Mapping
from typing import Any

from launch.errors import InputError


def check_class(config: Mapping[str, Any], name: str, where: Any) -> None:
    """Checks of what class of diffusers a config is.

    Raises:
        InputError: of another one than `name`.
    """
    if config.get("_class_name") != name:
        raise InputError(
            f"{where}: _class_name must be {name!r}, got {config.get('_class_name')!r}; name the "
            "folder of such weights"
        )


def own_fields(
    config: Mapping[str, Any],
    fixed: Mapping[str, tuple[Any, Any]],
    own: Mapping[str, Any],
    where: Any,
    advice: str,
) -> dict[str, Any]:
    """The values of the fields that a config may set, defaults filled in.

    Args:
        config: its content.
        fixed: fields with one value that we compute: (the library's default, ours).
        own: fields that it may set, with the library's defaults; `...` where it has to.
        where: its path, for messages.
        advice: what to use instead, for messages.

    Raises:
        InputError: a fixed field has another value, or a field is unknown and not None or False,
            or missing; names it.
    """
    for field, (default, ours) in fixed.items():
        value = config.get(field, default)
        # A list has one value for each level.
        if any(one != ours for one in (value if isinstance(value, list) else [value])):
            raise InputError(
                f"{where}: {field} must be {ours!r}, the only one implemented, got "
                f"{value!r}; {advice}"
            )
    for field in sorted(config.keys() - fixed.keys() - own.keys()):
        if not field.startswith("_") and config[field] not in (None, False):
            raise InputError(
                f"{where}: {field}={config[field]!r} is a field that is not implemented; {advice}"
            )
    values = {field: config.get(field, default) for field, default in own.items()}
    missing = [field for field, value in values.items() if value is ...]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing; {advice}")
    return values
