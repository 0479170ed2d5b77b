"""Which code a job is to run: the commit of this checkout, and whether that is all of it."""

import dataclasses
import os
import subprocess
from pathlib import Path

from launch.errors import InputError


@dataclasses.dataclass(frozen=True)
class Checkout:
    """The code that lies here.

    Attributes:
        root: of the repository.
        commit: 40 hexadecimal digits.
        is_dirty: whether files differ from it, or are not in it.
    """

    root: Path
    commit: str
    is_dirty: bool


def find_checkout(is_needed: bool = True) -> Checkout:
    """The checkout that this module is in.

    Args:
        is_needed: whether the job runs what is committed, and not simply what lies here.

    Raises:
        InputError: it is none, or git is missing, and it is needed.
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
    # Images and hosts of jobs have the files of a commit, and no repository.
    return Checkout(folder.parents[1], os.environ.get("IMAGEN_FT_COMMIT", ""), is_dirty=False)


def check_clean(checkout: Checkout, allow_dirty: bool, copies_code: bool) -> None:
    """Looks whether the commit tells what the job would run.

    Args:
        checkout: the code.
        allow_dirty: whether it need not.
        copies_code: whether hosts run the commit, not what lies here.

    Raises:
        InputError: it does not, and that was not allowed.
    """
    if checkout.is_dirty and not allow_dirty:
        code = f"commit {checkout.commit[:12]} without them" if copies_code else "what lies there"
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
            "git is not installed, and a job's code is identified by its commit; install it"
        ) from None
    if done.returncode:
        raise InputError(
            f"{folder} is not a git checkout; clone the project, and submit from there"
        )
    return done.stdout.strip()
