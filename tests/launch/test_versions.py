"""What a bug report says is what runs here."""

import platform
from importlib import metadata

import jax

from launch import versions


def test_versions(monkeypatch, capsys):
    monkeypatch.setenv("IMAGEN_FT_COMMIT", "0" * 40)
    monkeypatch.setenv("JAX_SOMETHING", "7")
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    assert versions.run(["launch.versions"]) == 0
    printed = capsys.readouterr().out
    found = dict(line.split(": ", 1) for line in printed.splitlines())
    assert found["python"] == platform.python_version()
    assert found["jax"] == jax.__version__ and found["flax"] == metadata.version("flax")
    assert found["devices"] == f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    assert found["JAX_SOMETHING"] == "7" and "s3cret" not in printed
    assert found["imagen-ft"] != "unknown"


def test_packages_that_are_not_there(monkeypatch):
    monkeypatch.setattr(versions, "PACKAGES", ("no-such-package",))
    found = versions.versions(devices=False)
    assert found["no-such-package"] == "not installed" and "devices" not in found


def test_devices_that_cannot_be_found_are_reported(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu':\n  no chip")

    monkeypatch.setattr(jax, "devices", fail)
    assert versions.versions()["devices"] == "Unable to initialize backend 'tpu': no chip"
