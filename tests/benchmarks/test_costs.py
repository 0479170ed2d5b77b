"""What the protocol costs: the counts still match the code, and the page has the table."""

import importlib
import json
import re
import sys

import pytest

from tests.benchmarks import costs, operations
from tests.benchmarks.recipes import recipe, step_flops
from tests.support import ROOT, pages


@pytest.fixture(scope="module")
def printed():
    """What the command prints, and its JSON lines by case."""
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *values, sep=" ": lines.append(sep.join(values)))
        patch.setattr(sys, "argv", ["costs", "--quick"])
        costs.main()
    text = "\n".join(lines)
    cases = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return text, {case["case"]: case for case in cases}


@pytest.mark.slow
def test_two_counts_are_those_of_the_code():
    counted = operations.counted()
    assert operations.latent_flops("sd15", "denoise") == counted["denoise"]["sd15"]
    assert operations.pass_flops("imagen_sr256", "denoise") == counted["denoise"]["imagen_sr256"]
    assert step_flops(recipe("resnet50")[0]) == counted["step"]["resnet50"]


@pytest.mark.slow
def test_all_counts_are_those_of_the_code():
    assert operations.count() == operations.counted()


@pytest.mark.parametrize("name", operations.TRAINED)
def test_steps_are_those_of_the_headers(name):
    # The headers count three or four whole passes, as XLA does.
    header = importlib.import_module(f"configs.imagenet.{name}").__doc__
    flops = 1e12 * float(re.search(r"\(([\d.]+) TFLOP an image", header)[1])
    assert operations.counted()["step"][name] == pytest.approx(flops, rel=0.11)


def test_sums(printed):
    _, cases = printed
    for cascade in ("imagen", "if"):
        *parts, total = (
            case
            for name, case in cases.items()
            if name.startswith(f"{cascade}: ") and "besides" not in name
        )
        for chip in costs.PEAKS:
            assert total[chip] == pytest.approx(sum(part[chip] for part in parts))
    base = cases["imagen: train imagen_base64, 210,000 steps"]
    flops = 210_000 * 2048 * operations.counted()["step"]["imagen_base64"]
    assert base["v4"] == pytest.approx(flops / (0.4 * 275e12) / 3600)
    assert base["usd_on_demand"]["v4"] == pytest.approx(3.22 * base["v4"])
    # 1000 guided steps of two passes; then 1000 and 32 steps of one pass.
    passes = operations.counted()["denoise"]
    drawn = [case for name, case in cases.items() if name.startswith("imagen: generate")]
    for case, steps, preset in zip(
        drawn, (2000, 1000, 32), ("imagen_base64", "imagen_sr256", "imagen_sr1024"), strict=True
    ):
        hours = 1_281_167 * steps * passes[preset] / (0.4 * 989e12) / 3600
        assert case["H200"] == pytest.approx(hours, rel=1e-2)
    assert all(price.spot < price.on_demand for price in costs.PRICES)


def test_a_million_images(printed):
    """Guidance doubles the passes, Heun all steps but the last; a decoder runs once."""
    _, cases = printed
    counts = operations.counted()
    drawn = cases["a million: sd15, ddim 50"]
    flops = 100 * counts["denoise"]["sd15"] + 2 * counts["context"]["sd15"]
    flops += counts["decode"]["sd15"]
    assert drawn["evaluations"] == 100
    assert drawn["v4"] == pytest.approx(1e6 * flops / (0.4 * 275e12) / 3600)
    assert cases["a million: sd15, distilled 4"]["evaluations"] == 4
    assert cases["a million: if_i_l + if_ii_l, heun 16 + 8"]["evaluations"] == 2 * 31 + 15


def test_the_page_has_what_is_printed(printed):
    text, _ = printed
    (block,) = pages.blocks((ROOT / "launch/README.md").read_text(), "text")
    assert len(block.splitlines()) > 20
    assert set(block.splitlines()) <= set(text.splitlines())


def test_the_page_tells_a_stages_costs_in_its_table(printed):
    _, cases = printed
    row = re.compile(r"^\| `(\w+)`, .* \| ([\d,]+) \| ([\d,]+), ([\d,]+) \|$", re.MULTILINE)
    rows = row.findall((ROOT / "launch/README.md").read_text())
    assert len(rows) == 4
    for name, *numbers in rows:
        (case,) = (case for about, case in cases.items() if f": train {name}," in about)
        told = [int(number.replace(",", "")) for number in numbers]
        costs_of_v4 = [case["v4"], case["usd_on_demand"]["v4"], case["usd_spot"]["v4"]]
        assert told == [round(cost) for cost in costs_of_v4]
