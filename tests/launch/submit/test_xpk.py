"""What xpk itself makes of the command that we print for it."""

import re
import shlex
import subprocess
import sys

import pytest

TASK = (
    "--",
    "python",
    "-m",
    "imagen_ft.finetune",
    "--config=my configs/a.py:k=1",
    "--workdir=gs://b/run",
)


@pytest.mark.slow
def test_xpk_takes_the_command(job, tools, tmp_path, capsys):
    tools.install("gcloud", "kubectl", "docker")
    place = ("--cluster=c", "--project=p", "--zone=us-central2-b", "--image=i")
    assert job("gke", "--via=xpk", "--tpu_type=v4-64", "--num_slices=2", *place, *TASK) == 0
    printed = capsys.readouterr()
    assert "run this yourself" in printed.err
    command = shlex.split(printed.out)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "xpk"], check=True)
    python = tmp_path / "xpk" / "bin" / "python"
    # xpk pins older versions of what we use, so it gets an environment of its own.
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "xpk>=1.16,<2"], capture_output=True, text=True
    )
    assert installed.returncode == 0, f"xpk cannot be installed here: {installed.stderr}"
    done = subprocess.run(
        [python.with_name("xpk"), *command[1:], "--dry-run"],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    codes = re.search(r"operator: NotIn\s+values: \[([0-9,]+)\]", done.stdout)
    assert {"75", "137", "143"} <= set(codes[1].split(","))
    assert "maxRestarts: 10" in done.stdout
    assert "terminationGracePeriodSeconds: 300" in done.stdout
    assert "(python -m imagen_ft.finetune '--config=my configs/a.py:k=1' --workdir" in done.stdout
