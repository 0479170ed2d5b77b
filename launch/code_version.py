"""Which code this is."""

import os
import subprocess
from importlib import metadata
from pathlib import Path


def code_version() -> str:
    """Its version: the package's, and the commit where there is one."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10)
        commit = described.stdout.strip() if described.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    # Images and hosts of jobs have the files of a commit, and no repository.
    commit = commit or os.environ.get("IMAGEN_FT_COMMIT", "")[:12]
    try:
        version = metadata.version("imagen-ft")
    except metadata.PackageNotFoundError:
        version = ""
    return " ".join(filter(None, (version, commit))) or "unknown"
