"""What the paper's protocol costs on accelerators, in chip hours and money. Computes no images.

python -m tests.benchmarks.costs                 # at 40% of the peak, an assumption
python -m tests.benchmarks.costs --share=0.3     # such as tests.benchmarks.sampling measures
python -m tests.benchmarks.costs --quick         # the same: it takes some seconds

Azizi et al. 2023: fine-tune a cascade, generate as many images as ImageNet has, train classifiers
on real, synthetic and both, evaluate them; with the paper's cascade (Imagen) and with the public
one (DeepFloyd IF-L). Steps, batches, guidance and samplers are those of configs/imagenet, the
operations come from `tests.benchmarks.operations`, the peaks from
`launch.runtime.devices.hardware`, the prices from `tests.benchmarks.prices`.

No chip reaches its peak. 40% is an assumption: for the training steps of the generators, the
compiler for TPU v4 expects 48% to 62% (headers of configs/imagenet), without the rest of a run;
sampling in small batches reaches less. Reading, decoding and storing images is not counted.
"""

import argparse
import dataclasses
import functools
import importlib
import json
from collections.abc import Mapping

import ml_collections

from configs.imagenet import generate, study
from configs.imagenet.recognition import NUM_IMAGES
from imagen_ft.diffusion.sampler_from_config import make_sampler
from imagen_ft.diffusion.schedule import make_schedule
from launch.runtime.devices.hardware import CHIPS
from launch.runtime.reports.tables import text_table
from tests.benchmarks.operations import LATENT_SIZES, SIZES, TRAINED, counted
from tests.benchmarks.prices import PRICES, READ, SOURCE

PEAKS = {price.chip: next(c for c in CHIPS if c.name == price.chip).peak_flops for price in PRICES}
# For durations in days: the paper's number of TPUs, or one host of GPUs.
MACHINES = {chip: 8 if chip.startswith("H") else 256 for chip in PEAKS}
MILLION = 1_000_000
# Images of configs/imagenet/evaluate.py: one forward pass over six sets. The attacks cost as much
# as training on ATTACKED: 5,000 images, 1 gradient for FGSM, 2 x 10 for PGD, and their evaluation.
EVALUATED, ATTACKED = 166_963, 125_000
ARMS = {"real": "real", "synthetic": "synthetic", "both": "real+synthetic,k=1"}
# Guidance, log-variance and steps that Azizi et al. 2023, section 4.2, try for the base.
GUIDANCES, LOGVARS, STEPS = (1.0, 1.25, 1.5, 1.75, 2.0, 5.0), 5, (128, 500, 1000)
SEEDS, LARGEST = 10, 10  # of the scaling study; multiples of ImageNet


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a protocol.

    Attributes:
        name: what is done.
        flops: floating-point operations.
        summed: whether it belongs to the protocol itself.
    """

    name: str
    flops: float
    summed: bool = True


def image_flops(preset: str, evaluations: int, guidance: float) -> float:
    """Operations to sample an image with one stage; guidance doubles its evaluations."""
    times = 1 if guidance == 1 else 2
    context, denoise = (counted()[method][preset] for method in ("context", "denoise"))
    return times * (evaluations * denoise + context)


def stage_training(name: str, note: str = "", summed: bool = True) -> Part:
    """The training of one stage of a generator, as in its config."""
    config = importlib.import_module(f"configs.imagenet.{name}").get_config()
    images = config.total_steps * config.batch_size
    flops = images * counted()["step"][name]
    return Part(f"train {name}, {config.total_steps:,} steps{note}", flops, summed)


def generation(cascade: str) -> list[Part]:
    """Generating a synthetic ImageNet, stage by stage."""
    largest = max(generate.CASCADES[cascade])
    stages = generate.get_config(f"cascade={cascade},size={largest}").stages
    parts = []
    for name, stage in sorted(stages.items(), key=lambda item: item[1].stage.size):
        steps, guidance = stage.sampler.num_steps, stage.guidance_weight
        times = make_sampler(stage.sampler).evaluation_times(make_schedule(stage.stage.schedule))
        note = f"{stage.stage.size} px, {steps} steps{' x 2' if guidance != 1 else ''}"
        flops = NUM_IMAGES * image_flops(name, len(times), guidance)
        parts.append(Part(f"generate {NUM_IMAGES:,}: {note}", flops))
    return parts


@functools.cache
def training_flops(model: str, arm: str) -> float:
    """Operations to train a classifier, as in its config."""
    config = importlib.import_module(f"configs.imagenet.{model}").get_config(f"arm={arm}")
    return config.total_steps * config.batch_size * counted()["step"][model]


def recognition() -> list[Part]:
    """All classifiers of tables 2 and 3, and their evaluation."""
    cas = sum(training_flops("cas_resnet50", ARMS[arm]) for arm in ("real", "synthetic"))
    parts = [Part("train cas_resnet50 on real, on synthetic", cas)]
    models = study.COMPARED
    for arm, argument in ARMS.items():
        flops = sum(training_flops(model, argument) for model in models)
        parts.append(Part(f"train {len(models)} classifiers on {arm}", flops))
    # A forward pass is a third of a training step.
    images = EVALUATED / 3 + ATTACKED
    evaluation = images * sum(counted()["step"][model] for model in models) * len(ARMS)
    return [
        *parts,
        Part(f"evaluate these {len(models) * len(ARMS)} on 6 sets, attacked", evaluation),
    ]


def search() -> list[Part]:
    """How the paper chose guidance, variance and steps of its base stage."""
    base = functools.partial(image_flops, "imagen_base64")
    tried = LOGVARS * sum(base(steps, guidance) for steps in STEPS for guidance in GUIDANCES)
    count = LOGVARS * len(STEPS) * len(GUIDANCES)
    chosen = NUM_IMAGES * sum(base(1000, guidance) for guidance in GUIDANCES)
    return [
        Part(f"choose the base's sampler: {count} x 50,000 images", 50_000 * tried, False),
        Part(f"choose its guidance: {len(GUIDANCES)} x {NUM_IMAGES:,} images", chosen, False),
    ]


def scaling() -> Part:
    """The study of figure 6: synthetic images beside the real ones, several seeds each."""
    arms = ["real", *(f"real+synthetic,k={k}" for k in range(1, LARGEST + 1))]
    flops = SEEDS * sum(training_flops("resnet50", arm) for arm in arms)
    return Part(f"figure 6: resnet50, 0 to {LARGEST} times, {SEEDS} seeds", flops, False)


def protocols() -> dict[str, list[Part]]:
    """Parts by cascade."""
    from_scratch = stage_training("imagen_sr1024", " from scratch", False)
    return {
        "imagen": [
            *map(stage_training, ("imagen_base64", "imagen_sr256")),
            *generation("imagen"),
            *recognition(),
            from_scratch,
            *search(),
            scaling(),
        ],
        "if": [*map(stage_training, ("if_i_l", "if_ii_l")), *generation("if"), *recognition()],
    }


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A way of drawing images.

    Attributes:
        generator: presets of its networks, smallest images first.
        solver: a name in `SAMPLERS`, or 'distilled' for a student with one evaluation per step.
        steps: of each network.
        guidance: of each network; 1 for none, or if the student has learned it.
    """

    generator: tuple[str, ...]
    solver: str
    steps: tuple[int, ...]
    guidance: tuple[float, ...]

    @property
    def evaluations(self) -> int:
        """Evaluations of the networks for one image, guidance included."""
        return sum(self._of_stages())

    @property
    def flops(self) -> float:
        """Operations for one image, including the decoder if there is one."""
        counts = counted()
        total = 0.0
        for preset, count, guidance in zip(
            self.generator, self._of_stages(), self.guidance, strict=True
        ):
            contexts = 1 if guidance == 1 else 2
            total += count * counts["denoise"][preset] + contexts * counts["context"][preset]
            total += counts["decode"].get(preset, 0.0)
        return total

    def _of_stages(self) -> list[int]:
        name = "ddim" if self.solver == "distilled" else self.solver
        counts = []
        for steps, guidance in zip(self.steps, self.guidance, strict=True):
            fields = dict(name=name, num_steps=steps, logvar_coeff=0.0, eta=0.0)
            sampler = make_sampler(ml_collections.ConfigDict(fields))
            times = len(sampler.evaluation_times(make_schedule("cosine")))
            counts.append(times * (1 if guidance == 1 else 2))
        return counts


def ways() -> list[Drawn]:
    """The configs' way to draw; a half, a quarter and a tenth of the steps; and students."""
    rows = []
    for cascade in ("imagen", "if"):
        stages = generate.get_config(f"cascade={cascade},size=256").stages
        ordered = sorted(stages.items(), key=lambda item: item[1].stage.size)
        names = tuple(name for name, _ in ordered)
        guidance = tuple(stage.guidance_weight for _, stage in ordered)
        whole = tuple(stage.sampler.num_steps for _, stage in ordered)
        rows.append(Drawn(names, "ddpm", whole, guidance))
        rows += [Drawn(names, solver, (16, 8), guidance) for solver in ("unipc", "heun")]
        rows.append(Drawn(names, "distilled", (4, 4), (1.0, 1.0)))
    # "Diversify, Don't Fine-Tune" (2023): 50 steps at guidance 2.
    for name in LATENT_SIZES:
        rows.append(Drawn((name,), "ddim", (50,), (2.0,)))
        rows += [Drawn((name,), solver, (16,), (2.0,)) for solver in ("dpmpp", "unipc")]
        rows.append(Drawn((name,), "distilled", (4,), (1.0,)))
    return rows


def print_million(share: float) -> list[dict]:
    """Prints a million images by generator and solver; returns one JSON line per row."""
    cells, lines = [], []
    for way in ways():
        hours = chip_hours(MILLION * way.flops, share)
        usd = money(hours, "on_demand")
        name = f"{' + '.join(way.generator)}, {way.solver} {' + '.join(map(str, way.steps))}"
        numbers = [f"{way.evaluations}", f"{way.flops / 1e12:,.0f}"]
        cells.append([name, *numbers, *(f"{value:,.0f}" for value in usd.values())])
        case = dict(case=f"a million: {name}", unit="chip-hours", share=share, **hours)
        lines.append(case | {"evaluations": way.evaluations, "usd_on_demand": usd})
    print(f"\na million images: US$ on demand, at {share:.0%} of the peak")
    print(text_table(["", "evaluations", "TFLOP an image", *PEAKS], cells))
    return lines


def chip_hours(flops: float, share: float) -> dict[str, float]:
    """Hours by chip.

    Args:
        flops: floating-point operations.
        share: the share of the chip's peak that is reached.
    """
    return {chip: flops / (peak * share) / 3600 for chip, peak in PEAKS.items()}


def money(hours: Mapping[str, float], kind: str) -> dict[str, float]:
    """US dollars by chip; `kind` is 'on_demand' or 'spot'."""
    return {price.chip: hours[price.chip] * getattr(price, kind) for price in PRICES}


def print_prices() -> None:
    """Prints the price list, and where and when it was read."""
    rows = [
        [price.chip, price.resource, price.region, f"{price.on_demand:.2f}", f"{price.spot:.2f}"]
        for price in PRICES
    ]
    print(f"\nUS$ per chip and hour: {SOURCE}, read {READ}")
    print(text_table(["chip", "of", "region", "on demand", "spot"], rows))


def print_protocol(cascade: str, parts: list[Part], share: float) -> list[dict]:
    """Prints three tables: chip hours, money on demand, money on spot.

    Returns one JSON line per row.
    """
    total = Part("all of it", sum(part.flops for part in parts if part.summed))
    parts = [*(p for p in parts if p.summed), total, *(p for p in parts if not p.summed)]
    hours = [chip_hours(part.flops, share) for part in parts]
    names = [part.name if part.summed else f"besides: {part.name}" for part in parts]
    usd = {kind: [money(row, kind) for row in hours] for kind in ("on_demand", "spot")}
    days = [
        f"{value / 24 / MACHINES[chip]:,.1f}" for chip, value in hours[parts.index(total)].items()
    ]
    machines = ["days of all of it", *days]
    tables = {"chip hours": hours, "US$ on demand": usd["on_demand"], "US$ on spot": usd["spot"]}
    for title, table in tables.items():
        cells = [
            [name, *(f"{value:,.{0 if value >= 10 else 1}f}" for value in row.values())]
            for name, row in zip(names, table, strict=True)
        ]
        print(f"\n{cascade}: {title}, at {share:.0%} of the peak")
        print(text_table(["", *PEAKS], [*cells, machines] if table is hours else cells))
    print(f"(days with {', '.join(f'{count} {chip}' for chip, count in MACHINES.items())})")
    return [
        dict(case=f"{cascade}: {name}", unit="chip-hours", share=share, **row)
        | {f"usd_{kind}": rows[i] for kind, rows in usd.items()}
        for i, (name, row) in enumerate(zip(names, hours, strict=True))
    ]


def print_networks(share: float) -> None:
    """Prints per network the operations of a pass and, if counted, of a training step."""
    rows, numbers = [], counted()
    for preset, size in SIZES.items():
        text, step = numbers["context"][preset] / 1e9, numbers["denoise"][preset] / 1e9
        training = f"{numbers['step'][preset] / 1e9:,.0f}" if preset in TRAINED else ""
        hours = chip_hours(MILLION * numbers["denoise"][preset], share)
        cells = [f"{size}", f"{text:,.1f}", f"{step:,.0f}", training]
        rows.append([preset, *cells, *(f"{value:.2f}" for value in hours.values())])
    print("GFLOP an image; and chip hours of a million passes, a step of a sampler each")
    print(text_table(["", "px", "text", "pass", "training", *PEAKS], rows))


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share is more than 0 and at most 1")
    return float(text)


def main() -> None:
    """Prints the tables, and one JSON line per row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=_share, default=0.4, help="of the peak, 0 to 1")
    parser.add_argument("--quick", action="store_true", help="changes nothing: all is quick")
    share, lines = parser.parse_args().share, []
    print_networks(share)
    print_prices()
    for cascade, parts in protocols().items():
        lines += print_protocol(cascade, parts, share)
    lines += print_million(share)
    print()
    print(*map(json.dumps, lines), sep="\n")


if __name__ == "__main__":
    main()
