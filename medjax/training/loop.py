"""The training loop: set up, restore or start, then train step by step."""

import contextlib
import logging
from pathlib import Path

import jax

from medjax import meshes
from medjax.arrays import Array, Batch
from medjax.errors import Stopped
from medjax.logs import duration
from medjax.runs.config import RunConfig
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.training.early_stopping import Patience
from medjax.training.log_lines import step_of
from medjax.training.optimizer import schedule_change
from medjax.training.progress import memory
from medjax.training.set_up import Session, SetUp, open_session, set_up
from medjax.training.speed import step_work
from medjax.training.step import TrainState
from medjax.training.stop import Verdict, stop_on_signals

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    workdir: str | Path,
    autoencoder: TrainedAutoencoder | None = None,
) -> TrainState:
    """Train to step `config.train.steps`, from the newest checkpoint in `workdir`.

    After its last step, a run always validates, samples and saves. SIGTERM or Ctrl-C
    saves after the current step, or after the current batch of an evaluation. In the
    second case the next call begins with that evaluation. The workdir gets
    `config.json`, `metrics.csv`, `curves.png`, `tensorboard/`, `samples/` and
    `checkpoints/`.

    Args:
        config: Config of the run.
        workdir: Folder of the run.
        autoencoder: A trained autoencoder, for tasks that need one; see `two_stages`.

    Returns:
        The state after the last step.

    Raises:
        UserError: If data, weights, mesh or checkpoints do not fit the config, the disk
            is full, or too many updates were not finite.
        Stopped: If a signal ended the run before its last step.
    """
    with stop_on_signals() as request:
        with contextlib.ExitStack() as opened:
            run, state = set_up(config, Path(workdir), autoencoder, request, opened)
            state, start = restore_or_start(run, state)
            with open_session(run, state, start) as session:
                state, step, verdict = train_steps(run, session, state, start)
        conclude(run, step, verdict, session.evaluators.patience)
    return state


def restore_or_start(run: SetUp, state: TrainState) -> tuple[TrainState, int | None]:
    """Return state and step of the newest checkpoint; if none, `state` and None."""
    start = run.checkpoints.latest_step
    if start is None:
        return state, None
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    # Free the memory first, because the devices may not hold two states.
    for array in jax.tree.leaves(state):
        array.delete()
    logger.info("restoring the checkpoint of step %d", start)
    restored = run.checkpoints.restore(like, start)
    plan, optim = run.config.train, run.config.optim
    logger.info("resuming after step %d of %d", start, plan.steps)
    earlier = run.checkpoints.earlier_plans
    for line in schedule_change(optim, plan.steps, earlier, start):
        logger.warning("%s", line)
    return restored, start


def train_steps(
    run: SetUp, session: Session, state: TrainState, start: int | None
) -> tuple[TrainState, int, Verdict]:
    """Train until the verdict is to stop; return the state, its step and the verdict.

    Args:
        run: Everything that the steps do not change.
        session: The open files, batches and meters.
        state: State before the next step. The first step donates it.
        start: Step of the restored checkpoint. None means a new run.
    """
    plan, evaluators = run.config.train, session.evaluators
    step = start or 0
    verdict = make_up_evaluation(run, session, state, start)
    while verdict is Verdict.CONTINUE:
        step += 1
        state, batch, metrics = update(run, session, state, step)
        verdict = run.stop.after_update(step, evaluators.patience.exhausted)
        ends = verdict.ends_evaluated
        reports = ends or step == 1 or step % plan.log_every == 0
        saves = verdict is not Verdict.CONTINUE or step % plan.checkpoint_every == 0
        pauses = reports or saves or evaluators.due(step)
        session.watch.look(state, step, batch, metrics, now=pauses)
        row = report(run, session, step, metrics) if reports else {}
        session.progress.update(step, row)
        with session.rate.paused():
            measured = evaluators.run(state.eval_params, run.frozen, step, ends)
            if measured is None:
                # Saved without metrics, so that the next call evaluates first.
                verdict = Verdict.ASKED_TO_STOP
                save(run, step, state, None)
            elif saves:
                save(run, step, state, row | measured)
    return state, step, verdict


def make_up_evaluation(
    run: SetUp, session: Session, state: TrainState, start: int | None
) -> Verdict:
    """Repeat an evaluation that a signal interrupted; return whether to train.

    The arguments are those of `train_steps`.
    """
    plan, evaluators = run.config.train, session.evaluators
    step = start or 0
    verdict = run.stop.at_start(evaluators.patience.exhausted)
    bare = start is not None and not run.checkpoints.has_metrics(start)
    owing = run.stop.any_host(bare)
    asked = verdict is Verdict.ASKED_TO_STOP
    if step >= plan.steps and not (asked and owing):
        verdict = Verdict.DONE
    if asked or not owing:
        return verdict
    ends = verdict.ends_evaluated
    with session.rate.paused():
        measured = evaluators.run(state.eval_params, run.frozen, step, ends)
    if measured is None:
        return Verdict.ASKED_TO_STOP
    # Only checkpoints on the schedule may become the best one.
    in_turn = ends or step % plan.checkpoint_every == 0
    run.checkpoints.add_metrics(step, measured if in_turn else {})
    return verdict


def update(
    run: SetUp, session: Session, state: TrainState, step: int
) -> tuple[TrainState, Batch, dict[str, Array]]:
    """Do one step; return the state after it, its batch and its metrics.

    The devices may still compute the metrics. Only the first step waits for them,
    because it compiles.
    """
    session.profile.before(step)
    with session.rate.waiting():
        batch = meshes.place_batch(next(session.batches), run.mesh)
    compiles = session.rate.compile_seconds is None
    if compiles:
        logger.info("compiling the training step; this can take minutes")
    state, metrics = run.train_step(state, run.frozen, batch, run.train_key)
    session.rate.count(run.config.data.batch_size)
    if compiles:
        jax.block_until_ready(metrics)
        seconds = session.rate.first_step_done()
        logger.info("compiled, first step included, in %s", duration(seconds))
        with session.rate.paused():
            given = (state, run.frozen, batch, run.train_key)
            session.rate.work = step_work(run.train_step, *given)
    session.profile.after(step, metrics)
    return state, batch, metrics


def report(
    run: SetUp, session: Session, step: int, metrics: dict[str, Array]
) -> dict[str, float]:
    """Write a row of metrics; return it by column."""
    row = {f"train/{name}": float(x) for name, x in metrics.items()}
    row |= {f"train/{n}": float(rate(step - 1)) for n, rate in run.rates.items()}
    row |= session.rate.read() | memory()
    session.writer.write(step, row)
    return row


def save(
    run: SetUp, step: int, state: TrainState, metrics: dict[str, float] | None
) -> None:
    """Start to save a checkpoint. `metrics=None`: the evaluation was interrupted."""
    logger.info("%s · saving the checkpoint", step_of(step, run.config.train.steps))
    run.checkpoints.save(step, state, metrics)


def conclude(run: SetUp, step: int, verdict: Verdict, patience: Patience) -> None:
    """Log why the run ended at `step`.

    Raises:
        Stopped: If a signal asked this host or another one to stop.
    """
    plan = run.config.train
    where = f"at step {step} of {plan.steps}"
    if verdict is Verdict.ASKED_TO_STOP:
        number = run.stop.request.signal
        asked = number.name if number else "another host was asked to stop"
        saved = f"saved in {run.workdir}" if step else "nothing to save yet"
        raise Stopped(f"{asked} {where}, {saved}; the same command resumes the run")
    if verdict is Verdict.NO_IMPROVEMENT:
        logger.info("early stopping %s: no improvement of %s", where, patience)
    elif verdict is Verdict.TIME_IS_UP:
        logger.info(
            "stopped %s: reached train.max_hours=%s; the same command resumes the run",
            where,
            plan.max_hours,
        )
    else:
        logger.info("done: %d steps, in %s", step, run.workdir)
