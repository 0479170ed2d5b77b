"""Verifies a synthetic set, and discards what is damaged so that it is generated again."""

import json
from typing import Any

from tqdm import tqdm

from input_pipeline.synthetic.verify import Report, verify
from input_pipeline.synthetic.writer import INDEX, MANIFEST, PROVENANCE, SyntheticWriter
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.locks import lock


def check(args: app.Arguments) -> Report:
    """Reads the whole set back and prints what it finds."""
    with tqdm(desc=f"verifying {args.workdir.name}", unit="image", mininterval=1) as bar:
        report = verify(args.workdir, bar.update)
    print(json.dumps(report.as_json(), indent=2))
    return report


def check_sound(args: app.Arguments, report: Report) -> None:
    """Raises `InputError`, saying what to do, if `check` found a fault."""
    if report.shards or len(report.faults["damaged"]):
        raise InputError(
            f"{args.workdir} has faults (listed above); run the same command with --repair"
        )
    if foreign := report.faults["foreign"]:
        raise InputError(f"{foreign[0]} belongs to another set; remove such files")
    # Not damage: sampling with the same seed would give the same image.
    if report.faults["blank"]:
        raise InputError(
            f"{args.workdir} has images of a single colour (listed above), and the cascade would "
            "draw them again; check its guidance and thresholds"
        )


def discard_damaged(args: app.Arguments, fields: dict[str, Any]) -> None:
    """Removes damaged shards, so that `generate` makes them again; locks the set."""
    # 1. Do not start a new set at a mistyped path.
    folder = args.workdir
    if not any((folder / name).exists() for name in (PROVENANCE, MANIFEST, INDEX)):
        raise InputError(f"{folder} is not a synthetic set; check the path")
    # 2. Remove the shards with faults, and the manifest: the set is not complete any more.
    lock(folder)
    writer = SyntheticWriter(folder, **fields, repair=True)
    report = check(args)
    for shard in report.shards:
        writer.discard(shard)
    if not report.ok:
        (writer.folder / MANIFEST).unlink(missing_ok=True)
