"""Save the training state in checkpoints, restore it, and delete old checkpoints.

Orbax writes a step's folder under a temporary name and then renames it. So the folder
is complete or missing. It holds

* ``state``: the trained parameters, their average, the optimizer's state, the step;
* ``about``: JSON of the resolved config, source and fingerprint of the inputs, and
  earlier values of `train.steps`;
* ``metrics``: JSON of the metrics; missing if a signal came before they were measured;
* ``checksums.json``: a digest of every file; see `medjax.runs.checksums`.

The inputs, which are the frozen base model and the data, are not saved. To resume with
other inputs is an error, because the trained weights only work with the same ones.
"""

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.checkpoint_utils import construct_restore_args
from orbax.checkpoint.type_handlers import (
    ArrayHandler,
    NumpyHandler,
    create_type_handler_registry,
)

from medjax import storage, trees
from medjax.arrays import PyTree
from medjax.errors import UserError, disk_error
from medjax.runs.checksums import set_damaged_aside, write_checksums
from medjax.runs.earlier_plans import EARLIER_PLANS, earlier_plans
from medjax.runs.read_checkpoint import write_metrics
from medjax.runs.same_run import check_same_run

logger = logging.getLogger(__name__)

# Each replica of an array writes a part of at least one megabyte. To split the many
# small arrays would cost more time than to write them whole.
_LEAST_PART = 2**20
_HANDLERS = create_type_handler_registry(
    (jax.Array, ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_PART)),
    (np.ndarray, NumpyHandler()),
)


class Checkpoints:
    """The checkpoints of one run, as a context manager that finishes pending saves.

    Saving is asynchronous: `save` returns when the arrays are copied from the devices.

    Attributes:
        earlier_plans: Earlier values of `train.steps`; see `runs.earlier_plans`.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        inputs: Mapping[str, Mapping[str, str]],
        keep_last: int = 2,
        keep_best: int = 1,
        metric: str = "val/loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        """Open or create the folder, and remove unfinished saves.

        Damaged checkpoints are logged and renamed, see `set_damaged_aside`.

        Args:
            folder: Folder of the checkpoints, with one subfolder per step.
            config: Resolved config to store in every checkpoint; converts to JSON.
            inputs: ``source`` and ``fingerprint`` of base model and data, by name.
            keep_last: Number of newest checkpoints to keep, at least 1.
            keep_best: Number of best checkpoints to keep in addition, at least 0.
            metric: Name of the metric that decides which checkpoints are best.
            mode: Whether the smallest or the largest value is best.

        Raises:
            UserError: If `keep_last` or `keep_best` is too small, or all checkpoints
                are damaged.
        """
        if keep_last < 1 or keep_best < 0:
            raise UserError(
                f"keep_last={keep_last}, keep_best={keep_best}: the run could not "
                "resume. Expected keep_last of at least 1 and keep_best of at least 0"
            )
        # Converted through JSON, so that it can be compared with a saved one.
        about = {"config": config, "inputs": inputs}
        self._about = json.loads(json.dumps(about))
        self._folder = Path(folder).absolute()
        self._saving = 0
        self._metric = metric
        self._worst = math.inf if mode == "min" else -math.inf
        policies = [
            checkpoint_managers.LatestN(keep_last),
            checkpoint_managers.BestN(
                get_metric_fn=self._score,
                reverse=mode == "min",
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if jax.process_index() == 0:
            set_damaged_aside(self._folder)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=self._score,
                best_mode=mode,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_checksums
                ),
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(type_handler_registry=_HANDLERS),
                "about": ocp.JsonCheckpointHandler(),
            },
        )
        newest = {} if self.latest_step is None else self.about()
        self.earlier_plans = earlier_plans(newest, self.latest_step or 0, self._about)
        self._about[EARLIER_PLANS] = self.earlier_plans

    @property
    def latest_step(self) -> int | None:
        """The newest saved step. None means that no checkpoint exists."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step with the best finite `metric`, or None; waits for pending saves."""
        self.wait()
        step = self._manager.best_step()
        if step is None:
            return None
        score = self._score(self._manager.metrics(step) or {})
        return step if math.isfinite(score) else None

    def save(
        self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None
    ) -> bool:
        """Start to save the state of `step`. Do nothing if `step` is already saved.

        Args:
            step: Number of training steps done.
            state: Any pytree of arrays; None counts as an empty subtree.
            metrics: Metrics of the step. None means that `add_metrics` adds them later.

        Returns:
            Whether a save was started.

        Raises:
            UserError: See `wait`.
        """
        if step in self._manager.all_steps():
            return False
        with self._told():
            self.wait()
            self._saving = step
            return self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(trees.unflatten(trees.by_path(state))),
                    about=ocp.args.JsonSave(self._about),
                ),
                metrics=metrics,
                force=True,
            )

    def has_metrics(self, step: int) -> bool:
        """Return whether the checkpoint of `step` has its metrics."""
        return self._manager.metrics(step) is not None

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics to a saved checkpoint that has none. Call this on every host."""
        self.wait()
        if jax.process_index() == 0:
            write_metrics(self._folder / str(step), metrics)
        multihost_utils.sync_global_devices(f"metrics of step {step}")
        self._manager.reload()

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """Return the state of `step`, laid out like `like`.

        Args:
            like: Arrays or `jax.ShapeDtypeStruct`s with shapes, dtypes and shardings.
                The mesh may differ from the one that saved.
            step: Step of the checkpoint. None means the newest.

        Raises:
            UserError: If the checkpoint is missing, belongs to another run (see
                `check_same_run`), or has arrays that do not match `like`.
        """
        step = self._resolve(step)
        where = f"checkpoint {step} in {self._folder}"
        check_same_run(where, self.about(step), self._about)
        wanted = trees.by_path(like)
        self._check_shapes(step, wanted)
        abstract = trees.unflatten(
            {p: ocp.utils.to_shape_dtype_struct(x) for p, x in wanted.items()}
        )
        target = ocp.args.PyTreeRestore(
            abstract, restore_args=construct_restore_args(abstract)
        )
        args = ocp.args.Composite(state=target)
        found = trees.flatten(self._manager.restore(step, args=args)["state"])
        return jax.tree.unflatten(jax.tree.structure(like), [found[p] for p in wanted])

    def about(self, step: int | None = None) -> dict[str, Any]:
        """Return config and inputs of a checkpoint, by default the newest."""
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        return self._manager.restore(self._resolve(step), args=args)["about"]

    def wait(self) -> None:
        """Wait until all saves are on disk.

        Raises:
            UserError: If the disk is full or cannot be written.
        """
        with self._told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until all saves are on disk, then release the folder."""
        with self._told():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _score(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(self._metric, self._worst)
        # A diverged validation must not count as best: NaN can sort to any place.
        return value if math.isfinite(value) else self._worst

    def _resolve(self, step: int | None) -> int:
        steps = list(self._manager.all_steps())
        if step is None and steps:
            return max(steps)
        if step is None or step not in steps:
            wanted = (
                "no checkpoint" if step is None else f"no checkpoint of step {step}"
            )
            raise UserError(f"{wanted} in {self._folder}. Existing steps: {steps}")
        return step

    def _write_checksums(self) -> None:
        """Write checksums. orbax calls this before it renames the checkpoint."""
        begun = storage.listed(self._folder, f"{self._saving}.orbax-checkpoint-tmp*")
        write_checksums(next(iter(begun), self._folder / str(self._saving)))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn an error of the disk into a `UserError` of one line."""
        try:
            yield
        except Exception as error:
            reason = disk_error(error)
            if reason is None or not self._saving:
                raise
            whole = [s for s in self._manager.all_steps() if s != self._saving]
            newest = f"step {max(whole)}" if whole else "none"
            raise UserError(
                f"cannot write checkpoint {self._saving} in {self._folder}: {reason}. "
                f"The newest complete checkpoint: {newest}. Free disk space and run "
                "the same command again"
            ) from error

    def _check_shapes(self, step: int, wanted: Mapping[str, Any]) -> None:
        saved = trees.by_path(self._manager.item_metadata(step)["state"].tree)
        for path in sorted(saved.keys() | wanted.keys()):
            there, here = (
                str(tuple(tree[path].shape)) if path in tree else "missing"
                for tree in (saved, wanted)
            )
            if there != here:
                raise UserError(
                    f"checkpoint {step} in {self._folder} does not fit this config: "
                    f"{path} is {there} in the checkpoint and {here} in this run. "
                    "Correct the config, or use another --workdir"
                )
