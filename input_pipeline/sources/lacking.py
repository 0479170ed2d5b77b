"""Fields of sources that a config may lack; apart, for JAX comes with what reads their defaults."""

from input_pipeline.sources import subsets
from input_pipeline.sources.registry import KINDS
from launch.fields import Fields
from launch.runtime.optional_fields import Defaults, below, unset

# Of every field that a source of some kind may have besides the one that it needs.
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
    """Fields of `load` that a config's `spec` lacks, which is at `path`."""
    kind = KINDS.get(spec.get("name"))
    names = (*kind.may_have, *subsets.FIELDS, "on_damage") if kind else ()
    own = {name: x for name, x in _DEFAULTS.items() if name.partition(".")[0] in names}
    # Of a group that is there all is needed: it has no defaults.
    return {
        place: x for place, x in below(path, spec, own).items() if _group(place, path) not in spec
    }


def _group(place: str, path: str) -> str:
    return place.removeprefix(f"{path}.").partition(".")[0]
