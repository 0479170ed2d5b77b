"""Arguments after a config file's name: `FILE.py:name=value,name=value`."""

from typing import Any


def parse(text: str | None, **defaults: Any) -> dict[str, Any]:
    """Typed arguments of a config file, from text such as 'name=value,flag'.

    A bare name sets a boolean. `defaults` has every argument, and the type of a default decides
    how its value is read. Raises ValueError for another name, or a value of another type.
    """
    arguments = dict(defaults)
    for item in filter(None, (text or "").split(",")):
        name, given, value = item.partition("=")
        if name not in defaults:
            raise ValueError(f"there is no argument {name!r}; use one of {', '.join(defaults)}")
        kind = type(defaults[name])
        if kind is bool:
            if given and value not in ("True", "False"):
                raise ValueError(f"{item!r} must be True or False")
            arguments[name] = value != "False"
        else:
            try:
                arguments[name] = kind(value)
            except ValueError:
                raise ValueError(f"{item!r} must have a value of type {kind.__name__}") from None
    return arguments


def split(text: str | None, **own: Any) -> tuple[dict[str, Any], str]:
    """`parse` for a config that builds on another: its own arguments, and the text of the rest."""
    items = list(filter(None, (text or "").split(",")))
    mine = [item for item in items if item.partition("=")[0] in own]
    others = ",".join(item for item in items if item not in mine)
    return parse(",".join(mine), **own), others
