"""Training, read from top to bottom: build, resume, then update after update."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from medjax import distributed, meshes, trees
from medjax.arrays import Batch
from medjax.data.pipeline import (
    dataset_identity,
    make_batches,
    open_dataset,
    record_ids,
)
from medjax.errors import Stopped
from medjax.runs.checkpoints import Checkpoints
from medjax.runs.config import RunConfig
from medjax.tasks import TASKS
from medjax.tasks.interface import TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.training import about
from medjax.training.evaluators import Evaluations
from medjax.training.latent_cache import cache_latents
from medjax.training.metrics_writer import MetricsWriter
from medjax.training.nonfinite import NonfiniteWatch, nonfinite_examples
from medjax.training.optimizer import (
    learning_rates,
    make_optimizer,
    schedule_change,
)
from medjax.training.profiling import Profile
from medjax.training.progress import Progress, RateMeter, memory
from medjax.training.step import (
    TrainState,
    check_batch_size,
    example_keys,
    init_state,
    make_train_step,
)
from medjax.training.stop import StopRequest, stop_on_signals
from medjax.training.validation import held_out, make_sample, make_validate

logger = logging.getLogger(__name__)

# What the hosts vote for after each update; the largest counts.
_GO_ON, _NO_BETTER, _TIME_IS_UP, _ASKED_TO_STOP = range(4)


def train(
    config: RunConfig,
    workdir: str | Path,
    autoencoder: TrainedAutoencoder | None = None,
) -> TrainState:
    """Train until `config.train.steps`, from the newest checkpoint in `workdir` on.

    The last step always validates, samples and saves. SIGTERM or Ctrl-C saves after the
    update under way, or the batch of an evaluation, which the next call then begins
    with. The workdir gets `config.json`, `metrics.csv`, `curves.png`, `tensorboard/`,
    `samples/` and `checkpoints/`.

    Args:
        config: The run's.
        workdir: Its folder.
        autoencoder: A trained one, for tasks that stand on it; see `stages`.

    Returns:
        The state after the last update.

    Raises:
        UserError: If data, weights, mesh or checkpoints do not fit the config, the disk
            is full, or too many updates were not finite.
        Stopped: If a signal ended the run before its last step.
    """
    with stop_on_signals() as stop:
        return _train(config, Path(workdir), autoencoder, stop)


def _train(
    config: RunConfig,
    workdir: Path,
    autoencoder: TrainedAutoencoder | None,
    stop: StopRequest,
) -> TrainState:
    data, plan = config.data, config.train
    hours = math.inf if plan.max_hours is None else plan.max_hours
    deadline = time.monotonic() + 3600 * hours
    mesh = meshes.make_mesh(config.mesh)
    first = jax.process_index() == 0
    accumulation = plan.gradient_accumulation_steps
    check_batch_size(data.batch_size, accumulation, mesh)
    examples, unseen = open_dataset(data, "train"), held_out(data)
    shown = examples if unseen is None else unseen

    init_key, train_key, eval_key = jax.random.split(jax.random.key(plan.seed), 3)
    row = TASKS[config.task]
    given = TaskInputs(
        config.model, data, config.diffusion, init_key, autoencoder, examples
    )
    assembly = row.build(given)
    task, tokenizer = assembly.task, assembly.tokenizer
    task.check(data.image_size, config.eval.sampling())
    inputs = {"base": assembly.base, "dataset": dataset_identity(data)}
    about.check_hosts(config, inputs, assembly.params, workdir)
    frozen = meshes.place_params(assembly.frozen, mesh)
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        dataclasses.asdict(config),
        inputs,
        keep_last=plan.keep_last,
        keep_best=plan.keep_best,
        metric=config.best.metric,
        mode=config.best.mode,
    )
    earlier = checkpoints.earlier_plans
    optimizer = make_optimizer(config.optim, plan.steps, assembly.params, earlier)
    rates = learning_rates(config.optim, plan.steps, earlier)
    ema_decay = config.optim.ema_decay
    state = init_state(
        assembly.params, assembly.statistics, optimizer, mesh, ema_decay is not None
    )
    # What is no larger than a microbatch fits where training does.
    microbatch = dataclasses.replace(data, batch_size=data.batch_size // accumulation)
    if assembly.posterior is not None:
        examples = cache_latents(
            examples,
            microbatch,
            inputs,
            assembly.posterior,
            frozen,
            mesh,
            workdir / "latents",
            stop,
        )
    about.tell(config, state.params, frozen, mesh, len(examples))

    train_step = make_train_step(
        task,
        optimizer,
        mesh,
        accumulation_steps=accumulation,
        ema_decay=ema_decay,
        max_skipped=plan.max_skipped_updates,
    )
    # Its own votes: one that training has not heard yet must not end here.
    evaluation_votes = distributed.Agreement()

    def asked_to_stop() -> bool:
        return evaluation_votes.largest(int(stop.made)) > 0

    how = (tokenizer, microbatch, config.eval, mesh, eval_key)
    validate = None
    if unseen is not None:
        validate = make_validate(task, unseen, *how, asked_to_stop)
    sample = make_sample(task, shown, *how, row.measure, asked_to_stop)
    del assembly  # The step donates the state; nothing else may hold the first one.

    def culprits(step: int, batch: Batch) -> Sequence[str]:
        ids = record_ids(examples, data, step - 1)
        keys = example_keys(train_key, step - 1, len(ids))
        fixed = trees.merge(frozen, state.statistics)
        found = nonfinite_examples(task, state.params, fixed, batch, keys, mesh)
        return [ids[number] for number in found]

    with checkpoints:
        start = checkpoints.latest_step
        if start is not None:
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                state,
            )
            del state  # Or the devices would hold two.
            state = checkpoints.restore(like, start)
            logger.info("resuming after step %d of %d", start, plan.steps)
            for line in schedule_change(config.optim, plan.steps, earlier, start):
                logger.warning("%s", line)
        about.write_about(config, workdir, state.params)
        step = start or 0
        rate = RateMeter()
        watch = NonfiniteWatch(plan.max_skipped_updates, int(state.skipped), culprits)
        batches = make_batches(
            examples,
            tokenizer,
            data,
            start_step=step,
            rows=meshes.host_rows(data.batch_size, mesh),
        )
        with (
            contextlib.closing(batches),
            MetricsWriter(workdir, start, enabled=first) as writer,
            Progress(plan.steps, step, terminal=None if first else False) as progress,
            Profile(plan, workdir / "profile") as profile,
        ):
            votes = distributed.Agreement()
            evaluate = Evaluations(config, workdir, validate, sample, writer)

            def vote(late: bool) -> int:
                if stop.made:
                    return _ASKED_TO_STOP
                going_on = _NO_BETTER if evaluate.patience.exhausted else _GO_ON
                return _TIME_IS_UP if late else going_on

            def agreed(number: int) -> int:
                # Of several hosts, what one call hears the next one gives.
                return max(votes.largest(number), votes.largest(_GO_ON))

            verdict = agreed(vote(late=False))
            stopping = step >= plan.steps or verdict != _GO_ON
            bare = start is not None and not checkpoints.has_metrics(start)
            owing = bool(agreed(int(bare)))
            if owing and verdict != _ASKED_TO_STOP:
                measured = evaluate(state.eval_params, frozen, step, last=stopping)
                if measured is None:
                    verdict, stopping = _ASKED_TO_STOP, True
                else:
                    # Saved out of turn, it is not to be the best.
                    in_turn = stopping or step % plan.checkpoint_every == 0
                    checkpoints.add_metrics(step, measured if in_turn else {})
                    owing = False
            while not stopping:
                step += 1
                profile.before(step)
                with rate.waiting():
                    batch = meshes.place_batch(next(batches), mesh)
                state, metrics = train_step(state, frozen, batch, train_key)
                rate.count(data.batch_size)
                if rate.compile_seconds is None:
                    jax.block_until_ready(metrics)
                    rate.first_step_done()
                profile.after(step, metrics)
                verdict = votes.largest(vote(late=time.monotonic() > deadline))
                last = step == plan.steps or verdict in (_NO_BETTER, _TIME_IS_UP)
                stopping = last or verdict == _ASKED_TO_STOP
                logs = last or step == 1 or step % plan.log_every == 0
                saves = stopping or step % plan.checkpoint_every == 0
                pauses = logs or saves or evaluate.planned(step)
                watch.look(step, batch, metrics, now=pauses)

                row: dict[str, float] = {}
                if logs:
                    row = {f"train/{name}": float(x) for name, x in metrics.items()}
                    row |= {f"train/{n}": float(f(step - 1)) for n, f in rates.items()}
                    row |= rate.read() | memory()
                    writer.write(step, row)
                with rate.paused():
                    measured = evaluate(state.eval_params, frozen, step, last)
                    if measured is None:
                        verdict, stopping, owing = _ASKED_TO_STOP, True, True
                        checkpoints.save(step, state)
                    elif saves:
                        checkpoints.save(step, state, row | measured)
                progress.update(step, row)
        if verdict == _ASKED_TO_STOP and (step < plan.steps or owing):
            asked = (
                stop.signal.name if stop.signal else "another host was asked to stop"
            )
            saved = f"saved in {workdir}" if step else "nothing to save yet"
            raise Stopped(
                f"{asked} at step {step} of {plan.steps}, {saved}; the same command "
                "goes on from here"
            )
        if step < plan.steps and verdict == _NO_BETTER:
            logger.info(
                "stopped at step %d of %d: %s brought nothing better",
                step,
                plan.steps,
                evaluate.patience,
            )
        elif step < plan.steps:
            logger.info(
                "stopped at step %d of %d after train.max_hours=%s; the same command "
                "goes on from here",
                step,
                plan.steps,
                plan.max_hours,
            )
        else:
            logger.info("done: %d steps, in %s", step, workdir)
    return state
