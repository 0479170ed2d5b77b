"""The training loop, shared by diffusion models and classifiers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh
from matplotlib.figure import Figure

from launch.cli import say
from launch.errors import InputError, Preempted
from launch.runtime.checkpoints.checkpoint import BEST, CHECKPOINTS, Best, Checkpoints, check_mode
from launch.runtime.checkpoints.inference import latest_step
from launch.runtime.devices import peers
from launch.runtime.devices.mesh import put_batch, with_shardings
from launch.runtime.ema import MAIN
from launch.runtime.limits import BATCH, MOST, SEED, check_numbers
from launch.runtime.optional_fields import Defaults, below, unset
from launch.runtime.state import TrainState
from launch.runtime.training import goodput
from launch.runtime.training.optimizers import lacking_in_optimizer
from launch.runtime.training.performance import Profile
from launch.runtime.training.preemption import Preemption
from launch.runtime.training.training_log import TrainingLog, ending
from launch.runtime.types import Metrics, Reader

# Ranges of config fields, in steps unless the name says otherwise.
_EVERY = (0, MOST)
_LIMITS = {
    "total_steps": (1, MOST),
    "batch_size": BATCH,
    "evaluation_batch_size": BATCH,
    "seed": SEED,
    "seeds": (1, MOST),
    # -1 is one loader process for each CPU, 0 is threads.
    "loader_workers": (-1, 1024),
    "log_every": _EVERY,
    "checkpoint_every": _EVERY,
    "evaluate_every": _EVERY,
    "pictures_every": _EVERY,
    "keep_checkpoints": (1, MOST),
}
_PROFILE = {"start": (0, MOST), "steps": (0, MOST)}


def lacking_in_training(config: ml_collections.ConfigDict) -> Defaults:
    """The optional fields, read by `fit`, the optimiser and the averages, that a config lacks."""
    own = {"pictures_every": 0, "keep_checkpoints": 2, "loader_workers": 0}
    best, profile = {"metric": unset(str), "mode": "min"}, {"start": 0, "steps": 0}
    average = {"decay": unset(float), "schedule": "warmup", "relative_width": unset(float)}
    averages = config.ema or {MAIN: {}}
    return {
        **below("", config, own),
        **below("best", config.get("best") or {}, best),
        **below("profile", config.get("profile") or {}, profile),
        **lacking_in_optimizer(config.optimizer),
        **{
            path: default
            for name, spec in averages.items()
            for path, default in below(f"ema.{name}", spec, average).items()
        },
    }


def check_training(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises `InputError` for a number that `fit` cannot work with; call it before writing."""
    check_fields(config)
    # Rows of a batch are split over these two mesh axes.
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % ways:
        raise InputError(
            f"config.batch_size must be a multiple of {ways} (mesh.data x mesh.fsdp), got "
            f"{config.batch_size}"
        )


def check_fields(config: ml_collections.ConfigDict) -> None:
    """The part of `check_training` that does not depend on the devices."""
    check_numbers(config, _LIMITS)
    profile = config.get("profile") or {}
    check_numbers(profile, _PROFILE, "config.profile")
    if unknown := sorted(set(profile) - set(_PROFILE)):
        raise InputError(f"config.profile has no field {unknown[0]!r}; use start, steps")
    if config.get("best"):
        check_mode(config.best.get("mode", "min"))


def fit(
    *,
    workdir: epath.Path,
    run_name: str,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    abstract: TrainState,
    create: Callable[[], TrainState],
    train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    batches: Reader,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    metric: Callable[[TrainState], Mapping[str, Any]] | None = None,
    pictures: Callable[[TrainState], Figure] | None = None,
    label: str = "train",
) -> TrainState:
    """Trains up to `config.total_steps`, from the newest sound checkpoint of `workdir` if any.

    Every process calls it, and all see the same metrics; the first one writes and prints.

    Args:
        workdir: the run directory.
        run_name: carried by its checkpoints, see `claim_workdir`.
        config: `total_steps`; the intervals `log_every`, `checkpoint_every`, `evaluate_every` and
            optionally `pictures_every`, in steps (0: never; the last step is always logged,
            evaluated and saved). Optional: `keep_checkpoints` (2); `best`, a dict of `metric` and
            `mode` ('min' or 'max'), which also keeps the checkpoint that evaluates best; `profile`,
            a dict of `start` and `steps`, the steps to trace.
        mesh: where batches go.
        abstract: shapes of the state.
        create: makes the state of step 0.
        train_step: jitted; donates the state. Its metrics are scalars, 'loss' among them, and
            short vectors (see `metrics.to_scalars`).
        batches: reads the batches of the run.
        evaluate: scalars of a state.
        metric: more scalars, at the interval `config.evaluation_metric.every`.
        pictures: a figure of a state.
        label: the run's name on the terminal.

    Raises:
        Diverged: the loss, a norm of the gradient or the update, or the validation loss is not
            finite.
        Preempted: the machine is being taken away; everything is saved.
        Failed: the last attempts ended at the same step, see `launch.goodput`.
    """
    # 1. Start the record of this attempt; refuse to end at the same step a fourth time.
    ledger = goodput.begin(workdir)
    with Preemption() as preemption, ExitStack() as opened:
        # 2. Get a state: the newest sound checkpoint, or a new one. However training ends, the save
        # under way is finished: it may be the last good checkpoint.
        storage = opened.enter_context(closing(_Storage(workdir, run_name, config, ledger)))
        state = storage.restore(mesh, abstract) or create()
        start, total = int(state.step), config.total_steps
        if start >= total:
            if jax.process_index() == 0:
                say(ending(workdir, label))
            return state
        # 3. Open the profile and the log. Batches are a function of the step alone.
        window = config.get("profile") or {}
        profile = opened.enter_context(closing(Profile(workdir / "profile", start + 1, **window)))
        log = TrainingLog(workdir, start, total, label, storage.newest, ledger)
        opened.enter_context(log)
        looks = _Looks(config, evaluate, metric, pictures)
        # 4. Train. Dispatch is asynchronous: the host prepares the next step while this one runs,
        # and reads metrics one step late.
        for step, batch in enumerate(log.wait_for(batches(start, total)), start=start + 1):
            # 4.1 Make the step.
            batch = put_batch(mesh, batch)
            log.before(step, train_step, state, batch)
            profile.before(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, batch)
            profile.after(step, metrics)
            # 4.2 Decide what follows. Metrics are read before a save, which needs a finite state.
            save = _due(step, config.checkpoint_every, total)
            log.after(step, metrics, read=save or _due(step, config.log_every, total))
            leave = preemption.reached(step)
            # 4.3 Evaluate, save, and only then take the next batch: a resumed run repeats nothing.
            # A preempted process has no time to evaluate or draw, except at the end of the run.
            scalars = looks.take(step, state, log) if not leave or step == total else None
            if save or leave or (scalars and config.get("best")):
                log.save(step, storage.keep, state, scalars, save or leave)
            # 4.4 Leave if the machine is going away. Otherwise seal a save that has ended: a thread
            # hashes its files meanwhile.
            if leave:
                storage.finish()
                raise Preempted(f"{workdir} is saved at step {step}: run the same command again")
            storage.seal_if_saved()
        # 5. Wait until the last checkpoint is sealed.
        storage.finish()
    return state


@dataclasses.dataclass(frozen=True)
class _Looks:
    """What is done with a state between steps; see `fit` for the fields."""

    config: ml_collections.ConfigDict
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None
    metric: Callable[[TrainState], Mapping[str, Any]] | None
    pictures: Callable[[TrainState], Figure] | None

    def take(self, step: int, state: TrainState, log: TrainingLog) -> Mapping[str, float] | None:
        """Evaluates and draws what is due at a step; returns the scalars if it evaluated."""
        config, total, scalars = self.config, self.config.total_steps, None
        due = []
        if self.evaluate and _due(step, config.evaluate_every, total):
            due.append(self.evaluate)
        if self.metric and _due(step, config.evaluation_metric.every, total):
            due.append(self.metric)
        if due:
            scalars = log.evaluate(step, functools.partial(_merged, due), state)
        every = config.get("pictures_every", 0)
        if self.pictures and every and _due(step, every, total):
            log.picture(step, self.pictures, state)
        return scalars


class _Storage:
    """The newest checkpoints of a run and, if the config asks for it, the best one."""

    def __init__(
        self,
        workdir: epath.Path,
        run_name: str,
        config: ml_collections.ConfigDict,
        ledger: goodput.Ledger,
    ):
        self._workdir, self._ledger, best = workdir, ledger, config.get("best")
        keep = config.get("keep_checkpoints", 2)
        self._checkpoints = Checkpoints(workdir / CHECKPOINTS, run_name, max_to_keep=keep)
        self._best = Best(workdir / BEST, run_name, **best) if best else None
        # A metric with its own interval is missing from the scalars of most evaluations.
        self._is_rare = bool((config.get("evaluation_metric") or {}).get("every", 0))

    def restore(self, mesh: Mesh, abstract: TrainState) -> TrainState | None:
        with self._ledger.doing("restore"):
            return self._checkpoints.restore(with_shardings(mesh, abstract))

    def keep(self, state: TrainState, scalars: Mapping[str, float] | None, save: bool) -> None:
        """Offers an evaluated state as the best; saves it as the newest if `save`."""
        if self._best and scalars and (self._best.metric in scalars or not self._is_rare):
            self._best.offer(state, scalars)
        if save:
            # Seal the best first: a run that resumes from the newest does not evaluate its step
            # again.
            if self._best:
                self._best.finish()
            self._checkpoints.save(state)

    def seal_if_saved(self) -> None:
        for saved in self._all():
            saved.seal_if_saved()

    def finish(self) -> None:
        with self._ledger.doing("checkpoint"):
            for saved in self._all():
                saved.finish()

    def newest(self) -> str:
        """Path of the newest sealed checkpoint, after waiting for a save under way."""
        self.finish()
        step = latest_step(self._workdir)
        return "none" if step is None else str(self._workdir / CHECKPOINTS / str(step))

    def close(self) -> None:
        with peers.finishing(), ExitStack() as opened:
            for saved in self._all():
                opened.callback(saved.close)

    def _all(self) -> list[Checkpoints | Best]:
        return [self._best, self._checkpoints] if self._best else [self._checkpoints]


def _merged(
    looks: Sequence[Callable[[TrainState], Mapping[str, Any]]], state: TrainState
) -> dict[str, Any]:
    return {name: value for look in looks for name, value in look(state).items()}


def _due(step: int, every: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)
