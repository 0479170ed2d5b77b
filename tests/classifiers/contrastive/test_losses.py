"""The losses against PyTorch, whole and in pieces, on one device and on eight."""

import os
import subprocess
import sys

import jax
import pytest

from classifiers.contrastive.losses import make_loss
from tests.classifiers.contrastive import reference
from tests.support import ROOT


@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_device(sigmoid, chunk):
    assert reference.error(sigmoid, chunk) < 1e-5


@pytest.mark.parametrize("sigmoid", [False, True])
def test_logits_never_exist_whole(sigmoid):
    """Neither forwards nor backwards: no array is as large as all logits."""
    loss = make_loss(sigmoid, chunk=8)
    closed = jax.make_jaxpr(jax.value_and_grad(loss))(reference.pairs())
    whole = reference.SIZE**2
    assert _largest(closed.jaxpr) < whole
    plain = jax.make_jaxpr(jax.value_and_grad(make_loss(sigmoid, 0)))(reference.pairs())
    assert _largest(plain.jaxpr) == whole


def _largest(jaxpr):
    """Elements of the largest array of a program, with those of its loops."""
    sizes = [variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars]
    inner = [
        _largest(getattr(value, "jaxpr", value))
        for equation in jaxpr.eqns
        for value in equation.params.values()
        if hasattr(getattr(value, "jaxpr", value), "eqns")
    ]
    return max([0, *sizes, *inner])


@pytest.mark.slow
def test_eight_devices():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "tests.classifiers.contrastive.reference"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("errors")]
    assert [len(line) for line in lines] == [4, 4], done.stderr
    assert max(float(number) for line in lines for number in line) < 1e-5
