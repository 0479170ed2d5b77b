"""imagen_ft.sweep through its command line, where the right answer follows from a formula."""

import contextlib
import csv
import json
import time
from unittest import mock

import pytest
from etils import epath

from imagen_ft import generate, sample, sweep
from imagen_ft.evaluation import drawn, seeing
from imagen_ft.sweeping import bench, best, figures, report, trained, work
from imagen_ft.sweeping.rows import CAS, Row, Score
from input_pipeline.synthetic.source import SyntheticSource
from launch.errors import Diverged
from launch.runtime.locks import tried
from tests.imagen_ft.sweeping import gaussian
from tests.support.commands import run

FD = "fd (pixels)"


def table(workdir):
    with (workdir / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def values(row):
    weight, coeff = float(row["guidance_weight"]), float(row["logvar_coeff"])
    return weight, coeff, int(row["num_steps"])


def chosen(workdir):
    (found,) = [values(row) for row in table(workdir) if row["best"]]
    return found


def contents(folder):
    """All files but locks, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".lock" not in path.name
    }


@pytest.fixture(scope="module", autouse=True)
def stand_ins():
    with gaussian.stand_ins():
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return gaussian.write_config(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def whole(config):
    gaussian.LOADED.clear()
    assert run(sweep.main, config, config.parent / "whole") == 0
    # The weights of all points.
    assert gaussian.LOADED == [["main"]]
    return config.parent / "whole"


def test_it_finds_the_known_optimum(whole):
    rows = table(whole)
    expected = {values(row): gaussian.distance(*values(row)) for row in rows}
    assert len(expected) == len(rows) == 18
    for row in rows:
        assert float(row[FD]) == pytest.approx(expected[values(row)], rel=0.05, abs=2e-3)
        # Guidance runs the network once more.
        times = 1 if float(row["guidance_weight"]) == 1 else 2
        assert int(row["evaluations"]) == times * int(row["num_steps"])
    assert chosen(whole) == min(expected, key=expected.get) == (2.0, 1.0, 8)


def test_a_fifth_of_the_images_finds_it_too(config, whole, tmp_path):
    budget = 18 * 1000 // 5
    assert run(sweep.main, config, tmp_path / "fifth", f"--budget={budget}") == 0
    assert chosen(tmp_path / "fifth") == chosen(whole)
    images = [int(row["images"]) for row in table(tmp_path / "fifth")]
    assert sum(images) <= budget and images.count(1000) == 2 and min(images) < 100


def test_outputs(whole):
    names = {path.name for path in whole.iterdir() if path.name[0] != "."}
    assert names == {
        "best.py", "features", "frechet_against_guidance_weight.png", "points", "report.html",
        "sweep.csv", "sweep.json",
    }  # fmt: skip
    page = (whole / "report.html").read_text()
    # One figure, six of the best and two of the worst points.
    assert page.count("<img ") == 9 and FD in page and ">fid" not in page


def test_generate_and_sample_read_the_best_setting(whole, tmp_path):
    path = whole / best.FILE
    assert run(sample.main, path, tmp_path / "samples", "--config.images_per_prompt=1") == 0
    settings = json.loads((tmp_path / "samples/samples.json").read_text())
    assert run(generate.main, path, tmp_path / "set") == 0
    provenance = json.loads((tmp_path / "set/provenance.json").read_text())["provenance"]
    for stages in (settings["stages"], provenance["config"]["stages"]):
        sampler = dict(name="ddpm", num_steps=8, logvar_coeff=1.0, eta=0.0)
        assert stages["base2"]["guidance_weight"] == 2.0
        assert stages["base2"]["sampler"] == sampler


class Killed(Exception):
    pass


@contextlib.contextmanager
def killed_at(owner, name, call, after=False):
    """A process that ends at a certain call of a function, before it or behind it."""
    function, calls = getattr(owner, name), []

    def ends(*args, **options):
        calls.append(name)
        if len(calls) == call and not after:
            raise Killed(name)
        result = function(*args, **options)
        if len(calls) == call:
            raise Killed(name)
        return result

    with mock.patch.object(owner, name, ends), pytest.raises(Killed):
        yield


def test_points_are_chosen_by_the_accuracy_of_classifiers(config, tmp_path):
    names = "train='t.py', overrides=('seeds=1',), evaluation='e.py', set='val'"
    cas = f"config.cas = dict({names}, environment=dict())"
    text = gaussian.BASE.replace("config.cas = dict()", cas)
    path = gaussian.write_config(tmp_path, text)
    flags = [*FEW, "--config.choose_by=cas", "--config.num_images=40"]
    assert run(sweep.main, path, tmp_path / "run", *flags) == 0
    assert not any(row["best"] for row in table(tmp_path / "run"))
    commands = []

    def train(self):
        for job in self._steps.values():
            commands.append(job.command)
            if job.command[0] == "classifiers.evaluate":
                accuracy = 0.9 if "guidance_weight=1+" in job.name else 0.6
                job.output.parent.mkdir()
                arms = {"arms": {"classifier": {"accuracies": [accuracy, accuracy]}}}
                job.output.write_text(json.dumps(arms))

    with mock.patch.object(trained.JobRunner, "run", train):
        assert run(sweep.main, path, tmp_path / "run", *flags, "--cas") == 0
    assert len(commands) == 8 and chosen(tmp_path / "run") == (1.0, 0.0, 4)
    for command in commands[::2]:
        (source,) = [word for word in command if ".train_sources.synthetic.path=" in word]
        images = SyntheticSource(source.partition("=")[2])
        assert images.labels.tolist().count(0) == 20 and len(images) == 40
    assert {row["cas"] for row in table(tmp_path / "run")} == {"0.9", "0.6"}
    assert (tmp_path / "run/frechet_against_cas.png").exists()


# A smaller grid: four points.
FEW = ("--config.grid.guidance_weight=(1.0, 2.0)", "--config.grid.logvar_coeff=(0.0,)")


def test_killed_at_points_it_ends_with_the_same_files(config, tmp_path):
    moments = (
        (drawn, "_write", 1, False),  # drawn, not kept
        (seeing, "features", 2, False),  # about to be looked at
        (bench.Bench, "measure", 1, False),  # looked at
        (work, "write_sealed", 1, False),  # measured
        (work, "write_sealed", 2, True),  # two points whole
        (work, "write_atomic", 1, True),  # its picture alone
        (report, "write_atomic", 1, True),  # the table alone
        (best, "write_atomic", 1, False),
    )
    for moment in moments:
        with killed_at(*moment):
            run(sweep.main, config, tmp_path / "killed", *FEW)
    for name in ("killed", "whole"):
        assert run(sweep.main, config, tmp_path / name, *FEW) == 0
    found, expected = (contents(tmp_path / name) for name in ("killed", "whole"))
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == [best.FILE]
    # It says where it is.
    before, after = (str(tmp_path / name).encode() for name in ("killed", "whole"))
    assert found[best.FILE].replace(before, after) == expected[best.FILE]


def test_workers_share_points(config, whole, tmp_path, capsys):
    folder = tmp_path / "shared"
    point = folder / "points/guidance_weight=1+logvar_coeff=0+num_steps=4"
    point.mkdir(parents=True)
    with contextlib.ExitStack() as elsewhere:
        # Another worker is at the first point until this one has nothing else to do.
        assert elsewhere.enter_context(tried(epath.Path(point)))
        done = []

        def sleep(seconds):
            done.extend(path.parent.name for path in folder.glob("points/*/1000.json"))
            elsewhere.close()

        with mock.patch.object(time, "sleep", sleep):
            assert run(sweep.main, config, folder, *FEW, "--worker=1", "--num_workers=2") == 0
    assert len(done) == 3 and point.name not in done
    assert "waiting for points that other workers are computing" in capsys.readouterr().out
    again = contents(folder)
    assert run(sweep.main, config, folder, *FEW, "--worker=0", "--num_workers=2") == 0
    assert contents(folder) == again
    same = "points/guidance_weight=2+logvar_coeff=0+num_steps=8/1000.json"
    assert again[same] == contents(whole)[same]


def test_a_point_that_diverges_is_not_chosen(config, tmp_path, monkeypatch, capsys):
    see = bench.Bench.see

    def diverges(self, images, measures):
        if images.name.startswith("guidance_weight=2"):
            raise Diverged("drew NaN")
        return see(self, images, measures)

    monkeypatch.setattr(bench.Bench, "see", diverges)
    flags = ["--config.grid.logvar_coeff=(1.0,)", "--config.grid.num_steps=(8,)"]
    assert run(sweep.main, config, tmp_path / "run", *flags) == 0
    rows = {float(row["guidance_weight"]): row for row in table(tmp_path / "run")}
    assert rows[2.0][FD] == "" and not rows[2.0]["best"] and rows[1.0]["best"]
    assert "guidance_weight=2+logvar_coeff=1+num_steps=8: drew NaN" in capsys.readouterr().err


def test_super_resolution_begins_with_one_set_of_images(config, tmp_path):
    drawn_at, draw = [], drawn.Drawn._draw_parts

    def counted(self, parts, tell):
        drawn_at.append((self._shape[0], len(self)))
        return draw(self, parts, tell)

    flags = [
        "--config.stage=sr4",
        f"--config.reference.statistics={config.parent}/larger.npz",
        "--config.grid.guidance_weight=(1.0,)",
        "--config.grid.logvar_coeff=(0.0, 0.5, 1.0)",
        "--config.grid.num_steps=(4,)",
        "--config.num_images=24",
        "--config.halving.finalists=1",
    ]
    with mock.patch.object(drawn.Drawn, "_draw_parts", counted):
        assert run(sweep.main, config, tmp_path / "run", *flags, "--budget=50") == 0
    low, high = ([count for size, count in drawn_at if size == at] for at in (2, 4))
    # As many to begin with as the last point has, in as many parts as there were rounds.
    assert sum(low) == 24 and len(low) == 2 and sum(high) <= 50
    assert high == [low[0]] * 3 + [low[1]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.stage=base"], "config.stage must be one of base2, sr4, got 'base'"),
        (["--config.grid={}"], "config.grid must have a dimension"),
        (["--config.grid.num_steps=()"], "config.grid.num_steps must be a list of values"),
        (["--config.grid.num_steps=(4, 4)"], "config.grid.num_steps must have each value once"),
        (
            ["--config.grid.num_steps=(0,)"],
            "config.grid: sampler.num_steps must be at least 1, got 0",
        ),
        (["--config.grid.guidance_weight=('a',)"], "guidance_weight must be a number, got 'a'"),
        (["--budget=30"], "--budget must be at least"),
        (
            ["--budget=-1"],
            "--budget must be a total number of images, or 0 for the whole grid, got -1",
        ),
        (["--worker=2", "--num_workers=2"], "--worker must be from 0 to 1, got 2"),
        (["--config.choose_by=sliced"], "config.choose_by must be one of frechet, got 'sliced'"),
        (["--config.halving.measure=is"], "config.halving.measure must be one of frechet"),
        (["--config.num_images=1"], "config.num_images must be at least 2, got 1"),
        (["--cas"], "--cas needs config.cas"),
    ],
)
def test_wrong_input(config, tmp_path, capsys, flags, message):
    assert run(sweep.main, config, tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


GRID = "guidance_weight=(1.0, 2.0, 3.0)"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("depth=(1,)", "config.grid has no dimension 'depth'; use some of sampler, num_steps"),
        ("noise_augmentation=(0.1,)", "config.grid.noise_augmentation must be a setting of stage"),
        ("sampler=('ddim',), logvar_coeff=(0.1,)", "config.grid.logvar_coeff must be a setting"),
        ("eta=(0.1,)", "config.grid.eta must be a setting of stage 'base2'"),
    ],
)  # fmt: skip
def test_wrong_dimensions(tmp_path, capsys, grid, message):
    text = gaussian.BASE.replace(
        "guidance_weight=(1.0, 2.0, 3.0), logvar_coeff=(0.0, 0.5, 1.0), num_steps=(4, 8)", grid
    )
    path = gaussian.write_config(tmp_path, text)
    assert run(sweep.main, path, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_what_a_sampler_does_not_read_makes_no_points(tmp_path, capsys):
    grid = "sampler=('ddpm', 'ddim'), logvar_coeff=(0.0, 0.3), eta=(0.0, 1.0)"
    text = gaussian.BASE.replace(
        "guidance_weight=(1.0, 2.0, 3.0), logvar_coeff=(0.0, 0.5, 1.0), num_steps=(4, 8)", grid
    )
    path = gaussian.write_config(tmp_path, text)
    with mock.patch.object(sweep, "parameter_shapes", lambda config, base: {}):
        assert run(sweep.main, path, None, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "eta=1+sampler=ddim: 4 network evaluations per image" in out
    assert "\n4 points, 4,000 images, at most 16,000 evaluations\n" in out


def test_points_of_solvers_and_what_they_cost(tmp_path, capsys):
    """One for all strengths of noise of a solver that has none; the others have one each."""
    grid = "sampler=('ddpm', 'unipc', 'heun'), logvar_coeff=(0.0, 0.3), order=(2, 3)"
    text = gaussian.BASE.replace(
        "guidance_weight=(1.0, 2.0, 3.0), logvar_coeff=(0.0, 0.5, 1.0), num_steps=(4, 8)", grid
    )
    path = gaussian.write_config(tmp_path, text)
    with mock.patch.object(sweep, "parameter_shapes", lambda config, base: {}):
        assert run(sweep.main, path, None, "--dry_run") == 0
    out = capsys.readouterr().out
    points = dict(line.split(": ") for line in out.splitlines() if "network evaluations" in line)
    names = {name: int(count.split()[0]) for name, count in points.items()}
    assert names == {
        "logvar_coeff=0+sampler=ddpm": 4,
        "logvar_coeff=0.3+sampler=ddpm": 4,
        "order=2+sampler=unipc": 4,
        "order=3+sampler=unipc": 4,
        "sampler=heun": 7,
    }


def test_steps_are_drawn_by_their_evaluations():
    rows = [
        Row("", dict(sampler=name, num_steps=steps), evaluations, 10, True, None, Score(0.5, 0.1))
        for name, steps, evaluations in (("ddim", 4, 8), ("ddim", 8, 16), ("heun", 4, 14))
    ]
    grid = dict(sampler=("ddim", "heun"), num_steps=(4, 8))
    assert figures.axes_of(grid) == ("num_steps", "sampler")
    [axes] = figures.against(rows, "num_steps", "sampler", CAS).axes
    drawn = {line[0].get_xdata()[0]: len(line[0].get_xdata()) for line in axes.containers}
    assert drawn == {8: 2, 14: 1} and "evaluations" in axes.get_xlabel()
