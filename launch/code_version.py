"""The version of this code."""

import os
import subprocess
from importlib import metadata
from pathlib import Path


def code_version() -> str:
    """The package's version and, where known, the commit; 'unknown' without both."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10)
        commit = described.stdout.strip() if described.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    # Images and hosts of jobs hold the files of a commit without its repository.
    commit = commit or os.environ.get("IMAGEN_FT_COMMIT", "")[:12]
    try:
        version = metadata.version("imagen-ft")
    except metadata.PackageNotFoundError:
        version = ""
    return " ".join(filter(None, (version, commit))) or "unknown"
