"""Installs, for the first cell of a notebook, the packages that its runtime lacks.

Keeps what the runtime brings, NumPy and JAX with its plugins above all, unless too old for us.
"""

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement

# Extras of setup.py that install JAX for a chip, by the package of the runtime that reveals it.
CHIPS = {"libtpu": "tpu", "jax-cuda12-plugin": "cuda", "jax-cuda13-plugin": "cuda"}
OTHER_VERSIONS = "this runtime has other versions than the project needs: "
RESTART = (
    " was loaded before it was replaced: choose Runtime > Restart session, then run all "
    "cells again; this cell will then have nothing to do"
)


def install(folder: Path = Path(), gcs: bool = False) -> None:
    """Installs what is missing; `gcs` adds the packages for paths at gs://.

    Raises `SystemExit` if that failed or the session must be restarted.
    """
    # 1. Is anything missing?
    requirements = required(folder, ("REQUIRES", "GCS") if gcs else ("REQUIRES",))
    before = installed()
    if unmet(requirements, before):
        # 2. Install it, holding NumPy and JAX at the runtime's versions where these will do.
        kept, chip = plan(requirements, before)
        print("Installing what this runtime lacks, which takes a minute or two ...", flush=True)
        _pip(folder, kept, [*([chip] if chip else []), *(["gcs"] if gcs else [])])
        # 3. Did that work, and does this process still use old modules?
        now = installed()
        if lacking := unmet(requirements, now):
            raise SystemExit(OTHER_VERSIONS + ", ".join(lacking))
        if stale := loaded({name for name in before if now.get(name) != before[name]}):
            raise SystemExit(", ".join(stale) + RESTART)
    print(f"Ready, with JAX {installed()['jax']}.")


def required(folder: Path, names: Collection[str] = ("REQUIRES",)) -> list[Requirement]:
    """The requirements in these lists of the project's setup.py, which is read but not run."""
    nodes = ast.parse((folder / "setup.py").read_text()).body
    lists = {ast.unparse(n.targets[0]): n.value for n in nodes if isinstance(n, ast.Assign)}
    return [Requirement(line) for name in names for line in ast.literal_eval(lists[name])]


def installed() -> dict[str, str]:
    """Versions of all installed packages, by name."""
    return {each.name: each.version for each in importlib.metadata.distributions()}


def unmet(requirements: Iterable[Requirement], versions: Mapping[str, str]) -> list[str]:
    """The requirements that these versions do not meet, each with the version at hand."""
    by_name = {_plain(name): version for name, version in versions.items()}
    lines = []
    for requirement in requirements:
        version = by_name.get(_plain(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lines.append(f"{requirement} (here: {version or 'none'})")
    return lines


def plan(requirements: Iterable[Requirement], versions: Mapping[str, str]) -> tuple[list[str], str]:
    """Constraints for pip to keep what the runtime has, and the extra of setup.py for its chip."""
    by_name = {requirement.name: requirement for requirement in requirements}
    kept, extra = [], ""
    if not unmet([by_name["numpy"]], versions):
        kept.append("numpy")
    if not unmet([by_name["jax"]], versions):
        # Plugins and CUDA packages must match jaxlib, so all of them are kept together.
        kept += [name for name in versions if name in ("jax", "jaxlib", *CHIPS)]
        kept += [name for name in versions if name.startswith("jax-cuda") and name not in kept]
    else:
        extra = next((extra for name, extra in CHIPS.items() if name in versions), "")
    return [f"{name}=={versions[name]}" for name in kept], extra


def loaded(packages: Collection[str]) -> list[str]:
    """Modules of these packages that this process has imported."""
    modules = importlib.metadata.packages_distributions().items()
    return sorted(name for name, of in modules if name in sys.modules and {*packages} & {*of})


def _pip(folder: Path, kept: Iterable[str], extras: Sequence[str]) -> None:
    constraints = folder / ".cache" / "kept.txt"
    constraints.parent.mkdir(exist_ok=True)
    constraints.write_text("".join(f"{line}\n" for line in kept))
    target = str(folder.resolve()) + (f"[{','.join(extras)}]" if extras else "")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    done = subprocess.run(
        [*command, "--editable", target],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"pip could not install the project:\n{done.stdout[-3000:]}")


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
