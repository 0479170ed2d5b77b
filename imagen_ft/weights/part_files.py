"""The files of a part, wherever they are, and its checksum."""

import hashlib
import tempfile
from pathlib import Path

from etils import epath

from imagen_ft.weights.pipeline_parts import (
    FILES,
    IMPORTED,
    MANIFEST,
    PARTS,
    RUN,
    NoSuchPart,
    locate,
    manifest_parts,
)
from launch.files import cache_folder, is_local, sha256, write_atomic
from launch.runtime.checkpoints.safetensors_io import open_weights
from launch.runtime.run import Run


def part_folder(path: epath.PathLike, part: str) -> Path:
    """A local folder with a part's files; for an import, with its copies of the small ones.

    `path` is a pipeline's folder, the part's own, an import, or a repository of the Hub; `part` is
    one of `PARTS` or `SMALL_PARTS`. Raises `InputError` if there is none or it cannot be fetched.
    """
    location = locate(path, part)
    if location.kind == FILES:
        return Path(location.folder)
    copies = location.root / "source" / part
    if location.kind == RUN or not copies.exists():
        raise NoSuchPart(f"{path} has no files of a {part}; use the pipeline that has them")
    return Path(copies) if is_local(copies) else _local_copy(copies, location.root / MANIFEST)


def _local_copy(folder: epath.Path, manifest: epath.Path) -> Path:
    # transformers reads tokenizers from local folders only. The manifest's checksum names the copy,
    # so that another import at the same address gets its own.
    target = cache_folder("source") / sha256(manifest)[:32] / folder.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            whole = Path(temporary, folder.name)
            whole.mkdir()
            for path in folder.iterdir():
                write_atomic(whole / path.name, path.read_bytes())
            if not target.exists():  # another process may have been faster
                whole.rename(target)
    return target


def digest(path: epath.PathLike, part: str, variant: str | None = None) -> str:
    """Checksum of a part: the same for equal files, imported or not, and for equal trained weights.

    `path` and errors are those of `part_folder`; a run directory will do too.
    """
    location = locate(path, part, variant)
    if part in PARTS and location.kind == RUN:
        return Run.open(location.folder).digest()
    folder = part_folder(path, part)
    if location.kind == IMPORTED and part in PARTS:
        # The checksums of the original files, so that a text cache made from these serves the
        # import too, and the other way round.
        files = {"config.json": sha256(folder / "config.json")}
        files |= dict(sorted(manifest_parts(location.root)[part]["files"].items()))
        return _digest_of(files)
    if part in PARTS:
        weights = open_weights(folder, PARTS[part].stem, variant, integers=True)
        names = ["config.json", *weights.files]
    else:
        names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return _digest_of({name: sha256(folder / name) for name in names})


def _digest_of(files: dict[str, str]) -> str:
    lines = "".join(f"{name} {digest}\n" for name, digest in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()
