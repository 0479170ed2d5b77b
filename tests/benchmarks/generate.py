"""The protocol of synthetic sets at ImageNet's size, with a sampler that costs nothing.

python -m tests.benchmarks.generate            # 1,281,167 images of 8 px: written, verified, read
python -m tests.benchmarks.generate --quick    # 50,000
python -m tests.benchmarks.generate --overhead=200    # against a sampler of 200 images/s of 64 px
python -m tests.benchmarks.generate --open=12811670   # opens the index of a set of that size

Class counts are ImageNet's as published: 1,000 classes, 732 to 1,300 images each, 1,281,167 in all
(which class has how many is made up). For --open the shards are empty files of the right size with
true indices.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from imagen_ft.cascade import Request
from input_pipeline.synthetic.source import SyntheticSource
from input_pipeline.synthetic.verify import verify
from input_pipeline.synthetic.writer import SyntheticWriter
from launch import files
from tests.imagen_ft.trivial_generate import Trivial

NAMES = tuple(f"class{i:03d}" for i in range(1000))


def class_counts(total: int) -> list[int]:
    """ImageNet's class counts, scaled to another total."""
    counts = np.full(1000, 1300)
    counts[:105] = 732 + 568 * np.linspace(0, 1, 105) ** 0.4617
    short = 1_281_167 - int(counts.sum())
    counts[1:94] += short // 93
    counts[1 : 1 + short % 93] += 1
    if total == 1_281_167:
        return counts.tolist()
    return np.maximum(1, counts * total // 1_281_167).tolist()


def memory(pid: int | str, field: str) -> float:
    """Memory that a process uses (VmRSS) or has used at most (VmHWM), in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1e3
    return 0.0


def command(folder: Path, counts: list[int], flags: list[str], **options: object) -> list[str]:
    """The command line of the trivial generator."""
    path = folder / "counts.json"
    path.write_text(json.dumps(dict(zip(NAMES, counts, strict=True))))
    options = dict(counts=str(path), names=NAMES, copies=1, **options)
    module = "tests.imagen_ft.trivial_generate"
    return [sys.executable, "-m", module, json.dumps(options), *flags]


def protocol(total: int) -> dict:
    """Writes, verifies and reads a whole set."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "set")
        options = dict(per_shard=16_000, batch_size=4096, size=8)
        began = time.perf_counter()
        line = command(Path(folder), class_counts(total), [f"--workdir={work}"], **options)
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        shares: dict[float, float] = {}
        shards = -(-sum(class_counts(total)) // 16_000)
        while process.poll() is None:
            done = len(list(work.glob("index/*.json"))) / shards
            for share in (0.25, 0.5, 0.75, 0.95):
                if done >= share and share not in shares:
                    shares[share] = memory(process.pid, "VmRSS")
            time.sleep(0.2)
        assert process.returncode == 0
        wrote = time.perf_counter() - began
        began = time.perf_counter()
        report = verify(work)
        verified = time.perf_counter() - began
        assert report.ok and report.num_examples == sum(class_counts(total))
        assert list(report.class_counts.values()) == class_counts(total)
        source = SyntheticSource(work)
        rng = np.random.default_rng(0)
        for number in range(source.plan.num_shards):
            source.shard(number)
        began = time.perf_counter()
        for i in rng.integers(len(source), size=20_000):
            source[int(i)]
        reads = 20_000 / (time.perf_counter() - began)
    return dict(
        images=report.num_examples,
        write_seconds=wrote,
        written_per_second=report.num_examples / wrote,
        memory_mb_at_quarters=[round(value) for value in shares.values()],
        verify_seconds=verified,
        random_reads_per_second=reads,
    )


def overhead(rate: float) -> dict:
    """Sampling with and without writing, at a given speed in images of 64 px per second."""
    images, batch = int(rate * 30), 64
    labels = np.zeros(images, int)
    sampler = Trivial.of(("a",), batch, 64, batch / rate)
    request = Request(labels=labels, indices=np.arange(images))
    began = time.perf_counter()
    for _ in sampler.stream(request):
        pass
    alone = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--workdir={folder}/set"]
        options = dict(per_shard=1000, batch_size=batch, size=64, seconds=batch / rate)
        line = command(Path(folder), [images] + [0] * 999, flags, **options)
        done = subprocess.run(line, check=True, capture_output=True, text=True)
    said = next(line for line in done.stdout.splitlines() if "a second" in line)
    written = float(said.split(" in ")[1].split()[0].replace(",", ""))
    exact = images / float(said.split(", ")[-1].split()[0])
    return dict(
        images=images,
        sampling_seconds=alone,
        with_writing_seconds=exact or written,
        overhead=exact / alone - 1,
    )


def opening(total: int) -> dict:
    """Time and memory to open a set, and to open all its indices."""
    with tempfile.TemporaryDirectory() as folder:
        copies = max(1, round(total / 1_281_167))
        writer = SyntheticWriter(
            folder, "huge", NAMES, (64, 64, 3), class_counts(1_281_167), copies, 0, {}
        )
        rng = np.random.default_rng(0)
        for shard in range(writer.plan.num_shards):
            lengths = rng.integers(8_000, 10_000, writer.plan.shard_size(shard)).tolist()
            size = sum(lengths) + 16 * len(lengths)
            with writer.shard_path(shard).open("wb") as file:
                file.truncate(size)
            sidecar = json.dumps(writer.describe(size, "0" * 64, lengths)).encode()
            files.write_atomic(writer.sidecar_path(shard), sidecar)
        writer.finish()
        code = (
            "import sys, time, json\n"
            "from tests.benchmarks.generate import memory\n"
            "from input_pipeline.synthetic.source import SyntheticSource\n"
            "before, began = memory('self', 'VmHWM'), time.perf_counter()\n"
            "source = SyntheticSource(sys.argv[1])\n"
            "len(source.labels), source.plan.locate(0)\n"
            "opened, used = time.perf_counter() - began, memory('self', 'VmHWM') - before\n"
            "for number in range(source.plan.num_shards): source.shard(number)\n"
            "whole, most = time.perf_counter() - began, memory('self', 'VmHWM') - before\n"
            "print(json.dumps(dict(records=len(source), shards=source.plan.num_shards,"
            " open_seconds=opened, open_mb=used, with_all_indices_seconds=whole,"
            " with_all_indices_mb=most)))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True
        )
    return json.loads(done.stdout)


def main() -> None:
    """Runs what is asked for; prints a table and a JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--overhead", type=float, metavar="RATE")
    parser.add_argument("--open", type=int, metavar="RECORDS")
    args = parser.parse_args()
    if args.overhead:
        found = overhead(args.overhead)
    elif args.open:
        found = opening(args.open)
    else:
        found = protocol(50_000 if args.quick else 1_281_167)
    for name, value in found.items():
        print(f"{name:28} {value if isinstance(value, list) else f'{value:,.5g}'}")
    print(json.dumps({"case": "generate", **found}))


if __name__ == "__main__":
    main()
