"""Defaults of source fields that a config may lack; apart, as reading defaults imports JAX."""

from input_pipeline.sources import subsets
from input_pipeline.sources.registry import KINDS
from launch.fields import Fields
from launch.runtime.optional_fields import Defaults, below, unset

# For every field that some kind of source has besides its name; see `registry.load`.
_DEFAULTS: Defaults = {
    "on_damage": "error",
    "copies": unset(int),
    "root": "",
    "split": unset(str),
    "held_out": unset(int),
    "upright": unset(bool),
    "path": unset(str),
    "data_set": unset(str),
    "data_dir": unset(str),
    "image": "image",
    "label": "label",
    "key": "",
    "caption": "",
    "row_groups": 4,
    "class_names": unset(tuple),
    "per_class": unset(int),
    "subset_seed": 0,
    "long_tail.n_max": unset(int),
    "long_tail.gamma": unset(float),
    "long_tail.order": unset(str),
    "classes": unset(tuple),
    "renumber": True,
    "keep": unset(str),
    "standin.class_names": unset(str),
    "standin.images": unset(int),
    "standin.size": unset(int),
    "standin.seed": unset(int),
}


def lacking_in_source(path: str, spec: Fields) -> Defaults:
    """Defaults of the fields that the source `spec`, at `path` in a config, lacks."""
    # Without a name nothing is known of its other fields.
    if not spec.get("name"):
        return below(path, spec, {"name": unset(str)})
    kind = KINDS.get(spec["name"])
    names = (kind.needs, *kind.may_have, *subsets.FIELDS, "on_damage") if kind else ()
    own = {name: x for name, x in _DEFAULTS.items() if name.partition(".")[0] in names}
    # A group, such as `standin`, has no defaults: it is absent, or has all its fields.
    return below(path, spec, {name: x for name, x in own.items() if _group(name) not in spec})


def _group(name: str) -> str:
    return name.partition(".")[0]
