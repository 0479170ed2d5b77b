"""Which code a job runs: the commit of this checkout, and whether anything differs from it."""

import dataclasses
import os
import subprocess
from pathlib import Path

from launch.errors import InputError


@dataclasses.dataclass(frozen=True)
class Checkout:
    """A checkout of the project."""

    root: Path  # of the repository
    commit: str  # 40 hexadecimal digits, or '' if unknown
    is_dirty: bool  # whether files differ from the commit or are not in it


def find_checkout(is_needed: bool = True) -> Checkout:
    """The checkout that this module is in.

    With `is_needed` the job runs what is committed: then `InputError` if git or a repository is
    missing. Otherwise it runs the files that are here.
    """
    folder = Path(__file__).parent
    try:
        root, commit = (
            _git(folder, "rev-parse", "--show-toplevel"),
            _git(folder, "rev-parse", "HEAD"),
        )
        return Checkout(Path(root), commit, bool(_git(folder, "status", "--porcelain")))
    except InputError:
        if is_needed:
            raise
    # Images and hosts of jobs hold the files of a commit without its repository.
    return Checkout(folder.parents[1], os.environ.get("IMAGEN_FT_COMMIT", ""), is_dirty=False)


def check_clean(checkout: Checkout, allow_dirty: bool, copies_code: bool) -> None:
    """Raises `InputError` if the job would run other code than its commit, unless that is allowed.

    With `copies_code` hosts run the commit, otherwise the files that are here.
    """
    if checkout.is_dirty and not allow_dirty:
        code = (
            f"commit {checkout.commit[:12]} without them"
            if copies_code
            else "the files as they are"
        )
        raise InputError(
            f"{checkout.root} has changes that are not committed; commit them, or pass "
            f"--allow_dirty to run {code}"
        )


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(
            "git is not installed, but jobs identify their code by its commit; install it"
        ) from None
    if done.returncode:
        raise InputError(
            f"{folder} is not a git checkout; clone the project, and submit from there"
        )
    return done.stdout.strip()
