"""Downloads from the Hugging Face Hub, through its client's cache and login."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import huggingface_hub
from huggingface_hub import errors

from launch.errors import InputError
from launch.files import is_local

_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
# Names that end so are mistyped paths of files.
_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def is_id(path: str) -> bool:
    """Whether the path has the form owner/name or owner/name@revision."""
    return _ID.fullmatch(path) is not None and not path.endswith(_FILES)


def is_repository(path: str) -> bool:
    """Whether the path names a repository, and nothing on this machine."""
    return is_local(path) and not Path(path).exists() and is_id(path)


def local(path: str, patterns: Sequence[str]) -> Path:
    """A path of this machine as it is, or the folder of a repository, as `fetch` downloads it.

    Raises:
        InputError: as `fetch`; the path is in an object store.
    """
    if not is_local(path):
        raise InputError(
            f"{path} must be on this machine, or owner/name of the Hub; copy it to a local folder"
        )
    return fetch(path, patterns) if is_repository(path) else Path(path)


def fetch(repository: str, patterns: Sequence[str]) -> Path:
    """Downloads the files that match any pattern, unless they are cached; returns their folder.

    Raises `InputError` if there is no such repository or revision, no access to it, or no network.
    """
    name, _, revision = repository.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=list(patterns)
            )
        )
    except (errors.HTTPError, OSError, ValueError) as error:
        _explain(repository, error)


def file_names(repository: str) -> list[str]:
    """Names of all files of a repository; raises `InputError` as `fetch`."""
    name, _, revision = repository.partition("@")
    try:
        return huggingface_hub.HfApi().list_repo_files(name, revision=revision or None)
    except (errors.HTTPError, OSError, ValueError) as error:
        _explain(repository, error)


def _explain(repository: str, error: Exception) -> NoReturn:
    # 1. The client reports a refusal by the server as a file missing from the cache.
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(
        error.__cause__, errors.HfHubHTTPError
    ):
        error = error.__cause__
    # 2. Say what to do. Subclasses come first: a gated repository is also one not found.
    page = f"{huggingface_hub.constants.ENDPOINT}/{repository.partition('@')[0]}"
    if isinstance(error, errors.GatedRepoError):
        reason = (
            f"the repository is gated; accept its licence at {page}, then log in (hf auth "
            "login, or set HF_TOKEN)"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = (
            "no such folder, and no such repository that you may read; check the name, or "
            "log in if it is private or gated (hf auth login, or set HF_TOKEN)"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"the repository has no such revision; {page} lists them"
    elif isinstance(error, errors.HfHubHTTPError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        status = error.response.status_code
        reason = f"the Hub answered {status} ({error.server_message or 'no reason given'}): "
        reason += "try again later" if status >= 500 else "log in (hf auth login) or check the name"
    elif isinstance(error, errors.HFValidationError):
        reason = "no such folder, and not the name of a repository; check it"
    elif isinstance(error, errors.HTTPError | ConnectionError | errors.LocalEntryNotFoundError):
        reason = (
            "no such folder, and it cannot be downloaded: there is no network (or HF_HUB_OFFLINE "
            "is set) and the cache does not have all of it; connect, or use a local folder"
        )
    else:
        raise error
    raise InputError(f"{repository}: {reason}") from error
