"""Build everything that a run needs before its first step."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Key

from medjax import meshes
from medjax.arrays import Array, Params
from medjax.data.examples import Example
from medjax.data.pipeline import Source, dataset_identity, make_batches, open_dataset
from medjax.models.attention_forms import check_attention
from medjax.runs.checkpoints import Checkpoints
from medjax.runs.config import RunConfig
from medjax.tasks import TASKS
from medjax.tasks.interface import BuiltTask, Task, TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.training.cached_examples import cached_examples
from medjax.training.evaluators import Evaluator, Evaluators
from medjax.training.host_checks import check_hosts
from medjax.training.metrics_writer import MetricsWriter
from medjax.training.nonfinite import Culprits, NonfiniteWatch
from medjax.training.optimizer import learning_rates
from medjax.training.profiling import Profile
from medjax.training.programs import make_step, microbatch
from medjax.training.progress import Progress, RateMeter
from medjax.training.run_summary import log_summary, write_summary
from medjax.training.sample_pages import SamplePages
from medjax.training.step import (
    TrainState,
    TrainStep,
    check_batch_size,
    init_state,
)
from medjax.training.stop import StopDecision, StopRequest
from medjax.training.trackers import Trackers, check_trackers
from medjax.training.validation_loss import NoValidation, ValidationLoss, held_out

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SetUp:
    """Everything that a run needs, except what its steps change.

    Attributes:
        config: Config of the run.
        workdir: Folder of the run.
        mesh: Mesh on which the arrays are placed.
        task: Functions of the task.
        tokenizer: Tokenizer of the captions. None for tasks without captions.
        examples: The training split, perhaps as cached images or latents.
        frozen: The frozen parameters, on the mesh.
        train_step: The jitted training step. It donates the state.
        rates: Learning rates by column, as functions of the steps done before.
        train_key: Key of all randomness in training.
        evaluators: Validation, then pages of samples.
        checkpoints: Checkpoints of the workdir; a context manager.
        stop: Decides whether to stop.
    """

    config: RunConfig
    workdir: Path
    mesh: Mesh
    task: Task
    tokenizer: Any
    examples: Source
    frozen: Params
    train_step: TrainStep
    rates: Mapping[str, optax.Schedule]
    train_key: Key[Array, ""]
    evaluators: tuple[Evaluator, ...]
    checkpoints: Checkpoints
    stop: StopDecision


@dataclasses.dataclass(frozen=True)
class Session:
    """Everything that is open from the first step to the last.

    Attributes:
        batches: This host's rows of the global batches, from the next step on.
        writer: Writer of the metrics.
        progress: Log and progress bar of the reports.
        profile: Recorder of a profile, if the config sets ``train.profile_at``.
        rate: Meter of images per second.
        watch: Watch for updates that are not finite.
        evaluators: Validation and sampling on schedule.
    """

    batches: Iterator[Example]
    writer: MetricsWriter
    progress: Progress
    profile: Profile
    rate: RateMeter
    watch: NonfiniteWatch
    evaluators: Evaluators


def set_up(
    config: RunConfig,
    workdir: Path,
    autoencoder: TrainedAutoencoder | None,
    request: StopRequest,
    opened: contextlib.ExitStack,
) -> tuple[SetUp, TrainState]:
    """Return what a run needs, and its state before the first step.

    Errors are those of `loop.train`.

    Args:
        config: Config of the run.
        workdir: Folder of the run.
        autoencoder: A trained autoencoder, for tasks that need one.
        request: The request that a signal makes.
        opened: Closes the checkpoints, also if the set-up fails after opening them.
    """
    data, plan = config.data, config.train
    stop = StopDecision(request, plan.steps, plan.max_hours)
    mesh = meshes.make_mesh(config.mesh)
    check_attention(config.model, mesh)
    check_trackers(config)
    check_batch_size(data.batch_size, plan.gradient_accumulation_steps, mesh)
    examples, unseen = open_dataset(data, "train"), held_out(data)
    init_key, train_key, eval_key = jax.random.split(jax.random.key(plan.seed), 3)

    logger.info("loading the networks of task %s", config.task)
    given = TaskInputs(
        config.model, data, config.diffusion, init_key, autoencoder, examples
    )
    assembly = TASKS[config.task].build(given)
    assembly.task.check(data.image_size, config.eval.sampling())
    inputs = {"base": assembly.base, "dataset": dataset_identity(data)}
    check_hosts(config, inputs, assembly.params, workdir)
    frozen = meshes.place_params(assembly.frozen, mesh)
    checkpoints = opened.enter_context(_checkpoints(config, workdir, inputs))
    earlier = checkpoints.earlier_plans
    optimizer, train_step = make_step(config, assembly, mesh, earlier)
    ema = config.optim.ema_decay is not None
    params, statistics = assembly.params, assembly.statistics
    state = init_state(params, statistics, optimizer, mesh, ema)
    shown = examples if unseen is None else unseen
    evaluators = _evaluators(
        config, assembly, (shown, unseen is not None), mesh, eval_key, stop
    )
    examples = cached_examples(
        config, assembly, inputs, examples, frozen, mesh, workdir, request
    )
    log_summary(config, params, frozen, mesh, len(examples))
    run = SetUp(
        config=config,
        workdir=workdir,
        mesh=mesh,
        task=assembly.task,
        tokenizer=assembly.tokenizer,
        examples=examples,
        frozen=frozen,
        train_step=train_step,
        rates=learning_rates(config.optim, plan.steps, earlier),
        train_key=train_key,
        evaluators=evaluators,
        checkpoints=checkpoints,
        stop=stop,
    )
    return run, state


@contextlib.contextmanager
def open_session(run: SetUp, state: TrainState, start: int | None) -> Iterator[Session]:
    """Open what the steps need; close it after the last one.

    Args:
        run: Everything that the steps do not change.
        state: State before the next step.
        start: Step of the restored checkpoint. None means a new run.

    Raises:
        UserError: If the run has already skipped too many updates.
    """
    config = run.config
    first = jax.process_index() == 0
    step = start or 0
    write_summary(config, run.workdir, state.params)
    culprits = Culprits(
        run.task, run.frozen, run.examples, config.data, run.train_key, run.mesh
    )
    allowed = config.train.max_skipped_updates
    watch = NonfiniteWatch(allowed, int(state.skipped), culprits)
    batches = make_batches(
        run.examples,
        run.tokenizer,
        config.data,
        start_step=step,
        rows=meshes.host_rows(config.data.batch_size, run.mesh),
    )
    terminal = None if first else False
    with (
        contextlib.closing(batches),
        Trackers(config if first else None, run.workdir, start) as trackers,
        MetricsWriter(run.workdir, start, first, trackers) as writer,
        Progress(config.train.steps, step, terminal=terminal) as progress,
        Profile(config.train, run.workdir / "profile") as profile,
    ):
        yield Session(
            batches=batches,
            writer=writer,
            progress=progress,
            profile=profile,
            rate=RateMeter(),
            watch=watch,
            evaluators=Evaluators(config, run.workdir, run.evaluators, writer),
        )


def _evaluators(
    config: RunConfig,
    assembly: BuiltTask,
    shown: tuple[Source, bool],
    mesh: Mesh,
    key: Key[Array, ""],
    stop: StopDecision,
) -> tuple[Evaluator, ...]:
    """Return validation and pages of samples.

    Args:
        config: Config of the run.
        assembly: Task of the run.
        shown: The split to evaluate on, and whether it is held out.
        mesh: Mesh on which the arrays are placed.
        key: Key of noise and timesteps.
        stop: Tells whether a signal asks to stop.
    """
    source, held_out = shown
    how = (source, assembly.tokenizer, microbatch(config), config.eval, mesh, key)
    validation: Evaluator = NoValidation(config.eval.every)
    if held_out:
        validation = ValidationLoss(assembly.task, *how, stop.in_evaluation)
    pages = SamplePages(
        assembly.task,
        *how,
        TASKS[config.task].measure,
        stop.in_evaluation,
        "val" if held_out else "train",
        config.log.real_images,
    )
    return validation, pages


def _checkpoints(
    config: RunConfig, workdir: Path, inputs: Mapping[str, Mapping[str, str]]
) -> Checkpoints:
    return Checkpoints(
        workdir / "checkpoints",
        dataclasses.asdict(config),
        inputs,
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        metric=config.best.metric,
        mode=config.best.mode,
    )
