"""Checkpoints: the training state, what it was trained with, and which ones to keep.

Each step's folder is complete or absent (orbax writes beside it and renames), and holds

* ``state``: the trained parameters, their average, the optimiser's state, the step;
* ``about``: the resolved config, source and fingerprint of the inputs, and earlier
  numbers of steps, as JSON;
* ``metrics``: what was measured, as JSON; missing where a signal came before that;
* ``checksums.json``: a digest of every file, see `medjax.runs.checksums`.

The inputs, which are the frozen base and the data, are not saved: resuming with others
is an error, for the trained half means nothing without them.
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

# Replicas of an array each write a part of it, but none of less than a megabyte: to cut
# the many small ones costs more than to write them whole.
_LEAST_PART = 2**20
_HANDLERS = create_type_handler_registry(
    (jax.Array, ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_PART)),
    (np.ndarray, NumpyHandler()),
)


class Checkpoints:
    """The checkpoints of one run; a context manager that finishes what it writes.

    Saving is asynchronous: `save` returns once the arrays are copied from the devices.

    Attributes:
        earlier_plans: What the run was planned for before; see `runs.earlier_plans`.
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
        """Open the folder, create it if need be, and remove unfinished saves.

        Newest checkpoints that are damaged are named, and set aside.

        Args:
            folder: Where the checkpoints lie, one folder a step.
            config: The resolved config, JSON-able; kept with every checkpoint.
            inputs: ``source`` and ``fingerprint`` of what training stands on, by name.
            keep_last: Newest checkpoints to keep, at least 1.
            keep_best: Best checkpoints by `metric` to keep beside those.
            metric: Which of the saved metrics says what is best.
            mode: Whether the smallest or the largest is best.

        Raises:
            UserError: If `keep_last` is below 1 or `keep_best` below 0, or if no
                checkpoint is whole.
        """
        if keep_last < 1 or keep_best < 0:
            raise UserError(
                f"keep_last is {keep_last}, keep_best {keep_best}; expected at least 1 "
                "and 0, or the run could not be resumed"
            )
        # As JSON gives it back, so that it compares with what was saved.
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
        """The newest step saved, or None."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step with the best finite `metric`, or None; waits for a save."""
        self.wait()
        step = self._manager.best_step()
        if step is None:
            return None
        score = self._score(self._manager.metrics(step) or {})
        return step if math.isfinite(score) else None

    def save(
        self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None
    ) -> bool:
        """Start saving the state of `step`, unless that step is saved already.

        Args:
            step: Updates done.
            state: Any pytree of arrays; None counts as an empty subtree.
            metrics: What was measured at it; None if `add_metrics` is to say later.

        Returns:
            Whether a save was started.
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
        """Tell whether what was to be measured at a saved step was."""
        return self._manager.metrics(step) is not None

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep what was measured at a step that was saved before; on every host."""
        self.wait()
        if jax.process_index() == 0:
            write_metrics(self._folder / str(step), metrics)
        multihost_utils.sync_global_devices(f"metrics of step {step}")
        self._manager.reload()

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """Return the state of `step`, laid out as `like`.

        Args:
            like: Arrays or `jax.ShapeDtypeStruct`s that carry shapes, dtypes and
                shardings; the mesh may differ from the one that saved.
            step: Which checkpoint; the latest where None.

        Raises:
            UserError: If there is none, it belongs to another run (other inputs, or a
                config that differs where it must not), or its arrays are not those of
                `like`.
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
        """Return the config and the inputs that a checkpoint was trained with."""
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        return self._manager.restore(self._resolve(step), args=args)["about"]

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            UserError: If the disk is full or refuses.
        """
        with self._told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then release the folder."""
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
        # A diverged validation must not win: NaN sorts anywhere.
        return value if math.isfinite(value) else self._worst

    def _resolve(self, step: int | None) -> int:
        steps = list(self._manager.all_steps())
        if step is None and steps:
            return max(steps)
        if step is None or step not in steps:
            wanted = (
                "no checkpoint" if step is None else f"no checkpoint of step {step}"
            )
            raise UserError(f"{wanted} in {self._folder}; it has {steps}")
        return step

    def _write_checksums(self) -> None:
        """Add checksums to what is about to become the checkpoint (orbax calls it)."""
        begun = storage.listed(self._folder, f"{self._saving}.orbax-checkpoint-tmp*")
        write_checksums(next(iter(begun), self._folder / str(self._saving)))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say in one line that the disk is full, or why else it refuses."""
        try:
            yield
        except Exception as error:
            reason = disk_error(error)
            if reason is None or not self._saving:
                raise
            whole = [s for s in self._manager.all_steps() if s != self._saving]
            newest = f"step {max(whole)}" if whole else "none"
            raise UserError(
                f"cannot write checkpoint {self._saving} in {self._folder}: {reason}; "
                f"the newest complete one is {newest}: make room and give the same "
                "command again"
            ) from error

    def _check_shapes(self, step: int, wanted: Mapping[str, Any]) -> None:
        saved = trees.by_path(self._manager.item_metadata(step)["state"].tree)
        for path in sorted(saved.keys() | wanted.keys()):
            there, here = (
                str(tuple(tree[path].shape)) if path in tree else "absent"
                for tree in (saved, wanted)
            )
            if there != here:
                raise UserError(
                    f"checkpoint {step} in {self._folder} does not fit this "
                    f"config: {path} is {there} there, {here} here; mend the config or "
                    "give another --workdir"
                )
