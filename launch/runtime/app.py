"""From a command line to a running task: flags, the config, one clear line on wrong input."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import jax
import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from launch.cli import define_alone, expand_home, helped, read_flags
from launch.errors import InputError, Unreachable
from launch.files import cache_folder, is_local
from launch.runtime import optional_fields
from launch.runtime.checkpoints.orbax_options import is_left_waiting
from launch.runtime.config import check_overrides, load_config, plain, reading
from launch.runtime.devices import job
from launch.runtime.reports.parameters import module_table, tensor_table

FLAGS_TITLE = "every task"  # in --help
_CONFIG_HELP = (
    "--config=FILE.py[:name=value,...]: the experiment",
    ("--config.field=value: sets a field, or one that --dry_run lists as missing; may be repeated"),
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a task is called with; the config is resolved and locked."""

    config: ml_collections.ConfigDict
    folder: epath.Path | None  # the run directory; None if nothing is run (--dry_run, --preflight)
    dry_run: bool
    flags: flags.FlagValues

    @property
    def workdir(self) -> epath.Path:
        """The run directory, for a task that runs."""
        assert self.folder is not None, "without --workdir this task supports only --dry_run"
        return self.folder


def run(
    task: Callable[[Arguments], None],
    description: str,
    define_flags: Callable[[flags.FlagValues], None] | None = None,
    argv: Sequence[str] | None = None,
    lacking: optional_fields.Lacking | None = None,
) -> None:
    """Parses the command line, runs `task` and exits with a code of `launch.cli`'s table.

    `description` is what --help starts with; `define_flags` adds the task's own flags; `argv`
    replaces the process's. `lacking` lists the fields that a config may have and lacks: a command
    line can set them too.
    """
    argv = list(sys.argv if argv is None else argv)

    def command() -> None:
        # 1. Read the command line; nothing has been written yet.
        arguments = parse(argv, description, define_flags, lacking)
        # Grain reads its debugging options from absl's global flags, and fails on unparsed ones.
        flags.FLAGS.mark_as_parsed()
        _keep_compilations()
        if "preflight" in arguments.flags and arguments.flags.preflight:
            # Importing libtpu to compile would otherwise probe this machine for chips and complain.
            jax.config.update("jax_platforms", "cpu")

        # 2. Run the task, alone or together with the other processes of the job.
        def work() -> None:
            with reading(arguments.config):
                task(arguments)
                if arguments.dry_run and lacking:
                    config = arguments.config
                    print(optional_fields.text(lacking(config), config))

        if "num_processes" in arguments.flags and arguments.folder:
            job.run_together(arguments.flags, functools.partial(_settings, arguments), work)
        else:
            work()

    # 3. Exit with one line and a code.
    resume = "run the same command again to resume"
    code = job.exit_code(command, resume)
    if code == Unreachable.code and is_left_waiting():
        # Orbax's threads still wait for the store. Python would join them at exit, and so keep
        # a scheduler from running the command again.
        os._exit(code)
    sys.exit(code)


def _settings(arguments: Arguments) -> dict[str, Any]:
    # What all processes must agree on. `plain` below holds the overrides already. Hosts may differ
    # in their number of CPUs.
    overrides = [name for name in arguments.flags if name.partition(".")[0] == "config"]
    common = job.settings(arguments.flags, paths=("workdir",), without=overrides)
    config = {key: x for key, x in plain(arguments.config).items() if key != "loader_workers"}
    return {**common, "config": config}


def parse(
    argv: Sequence[str],
    description: str = "",
    define_flags: Callable[[flags.FlagValues], None] | None = None,
    lacking: optional_fields.Lacking | None = None,
) -> Arguments:
    """Reads `--config=FILE.py[:arguments]`, `--config.field=value`, `--workdir`, `--dry_run`.

    --help prints and exits. Raises `InputError` on an unknown flag or config field, a missing file
    or a value of the wrong type.
    """
    # 1. Define the flags.
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "run directory; created if missing", flag_values=values)
    flags.DEFINE_bool(
        "dry_run",
        False,
        "print the resolved config, the parameters and the optional fields, then exit",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "all_tensors",
        False,
        "with --dry_run: one line per tensor, not per module",
        flag_values=values,
    )
    if define_flags:
        define_flags(values)
    define_alone(values)
    if helped(argv, description, values, _CONFIG_HELP):
        sys.exit(0)
    # 2. Load the config and add the optional fields that the command line sets: ml_collections
    # makes flags of existing fields only.
    config, argv = _config(expand_home(argv))
    added = optional_fields.add_named(argv, config, lacking) if lacking else None
    check_overrides(argv, config)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    # 3. Parse. Fields that were set to their defaults are removed again, so that the config
    # compares equal to one that never had them.
    read_flags(argv, values)
    if added:
        optional_fields.remove_defaults(values.config, added)
    # 4. Check what belongs together.
    if values.all_tensors and not values.dry_run:
        raise InputError("--all_tensors needs --dry_run; add it, or leave --all_tensors out")
    runs = not (values.dry_run or ("preflight" in values and values.preflight))
    folder = _folder(values.workdir) if runs else None
    return Arguments(values.config, folder, values.dry_run, values)


def _config(argv: Sequence[str]) -> tuple[ml_collections.ConfigDict, list[str]]:
    names = [arg.removeprefix("--config=") for arg in argv if arg.startswith("--config=")]
    if len(names) != 1:
        raise InputError(
            "--config must be given once, got another number; pass one file, "
            "--config=configs/X/Y.py"
        )
    return load_config(names[0]), [arg for arg in argv if not arg.startswith("--config=")]


def _folder(workdir: str | None) -> epath.Path:
    if not workdir:
        raise InputError("--workdir is missing; pass the run directory, --workdir=DIR")
    if not is_local(workdir) and not workdir.startswith("gs://"):
        raise InputError(f"--workdir must be a local path or begin with gs://, got {workdir}")
    # fsspec reports a missing gcsfs only at the first access, deep inside a library.
    if not is_local(workdir) and not find_spec("gcsfs"):
        raise InputError(f'--workdir={workdir} needs more packages; pip install ".[gcs]" first')
    return epath.Path(workdir)


def describe(args: Arguments, **models: Any) -> None:
    """Prints the resolved config and each model's parameters, or abstract ones (shapes only)."""
    print(args.config.to_json_best_effort(indent=2))
    table = tensor_table if args.flags.all_tensors else module_table
    for name, params in models.items():
        print(f"{name}:")
        print(table(params))
        total = sum(leaf.size for leaf in jax.tree.leaves(params))
        print(f"{name}: {total:,} parameters")


def _keep_compilations() -> None:
    # A user's own cache folder (flag, or environment variable of JAX) wins.
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("jax")))
