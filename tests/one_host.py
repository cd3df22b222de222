"""Act as one of several hosts for `tests/test_distributed.py`; --act sets the act."""

import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import AxisType, Mesh

from medjax import cli, distributed, meshes
from medjax.errors import UserError
from medjax.training.stop import StopRequest
from tests.cached import cached_examples_of

ACT = flags.DEFINE_string("act", None, "A function of this file.")
ADDRESS = flags.DEFINE_string("coordinator_address", None, "As in medjax.train.")
FOLDER = flags.DEFINE_string("folder", None, "A folder that the hosts share.")
COUNT = flags.DEFINE_integer("num_processes", None, "As in medjax.train.")
NUMBER = flags.DEFINE_integer("process_id", None, "As in medjax.train.")
TIMEOUT = flags.DEFINE_integer("host_timeout", None, "As in medjax.train.")


def agree():
    """Vote 2 on the second host at call 3, and 1 on the first at call 2."""
    votes = distributed.Agreement()
    host = jax.process_index()
    wishes = [0, 0, 1 - host, 2 * host, 0, 0]
    print(json.dumps([votes.largest(wish) for wish in wishes]))


def place():
    """Place each host's rows on meshes that split them in several ways."""
    first, second = np.reshape(jax.devices(), (2, 4))
    layouts = {
        "by host": np.concatenate([first, second]).reshape(8, 1, 1),
        "in turns": np.stack([first, second], axis=1).reshape(8, 1, 1),
        "fsdp within": np.stack([first, second]).reshape(2, 4, 1),
        "tensor across": np.stack([first, second], axis=1).reshape(4, 1, 2),
        "tensor over all": np.concatenate([first, second]).reshape(1, 1, 8),
    }
    rows = {}
    for name, devices in layouts.items():
        mesh = Mesh(devices, meshes.AXES, axis_types=(AxisType.Auto,) * 3)
        rows[name] = meshes.host_rows(16, mesh)
        batch = {"images": np.asarray(rows[name], np.float32)[:, None]}
        placed = meshes.place_batch(batch, mesh)["images"]
        kernel = np.arange(64.0).reshape(8, 8)
        params = meshes.place_params({"kernel": kernel}, mesh)
        both = jax.jit(lambda x, y: (x, y), out_shardings=meshes.replicated(mesh))(
            placed, params["kernel"]
        )
        whole, same = (np.asarray(x.addressable_data(0)) for x in both)
        assert whole[:, 0].tolist() == list(range(16)), (name, whole)
        np.testing.assert_array_equal(same, kernel)
    print(json.dumps(rows))


def cache():
    """Cache the latents and captions of a data set in a folder that the hosts share."""
    cached_examples_of("cxr_text_to_image", Path(FOLDER.value))


def stop_while_caching():
    """Cache images on each host; the second one is asked to stop."""
    stop = StopRequest()
    if jax.process_index() == 1:
        stop.signal = signal.SIGTERM
    cached_examples_of(
        "cxr_controlnet",
        Path(FOLDER.value) / "run",
        cache=str(Path(FOLDER.value) / f"images-{jax.process_index()}"),
        stop=stop,
    )


def differ():
    """Pass a fact that the other host does not have."""
    distributed.check_same("first", {"dataset": "abc"})
    # As in the second stage of a run.
    distributed.check_same("first", {"dataset": "def"})
    distributed.check_same("second", {"dataset": f"abc{jax.process_index()}", "b": 1})


def fail():
    """Fail on the second host, while the first waits for it on a device."""
    votes = distributed.Agreement()
    if jax.process_index() == 1:
        raise UserError("the second host's own")
    while True:
        votes.largest(0)


def fail_alike():
    """Fail in the same way on both hosts."""
    raise UserError("a mistake of both")


def die():
    """End the second host without a message, while the first waits for it."""
    votes = distributed.Agreement()
    votes.largest(0)
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        votes.largest(0)


def main(_: object) -> None:
    hosts = distributed.Hosts(
        ADDRESS.value, COUNT.value, NUMBER.value, timeout_seconds=TIMEOUT.value
    )
    with distributed.joined(hosts):
        jnp.zeros(()).block_until_ready()
        globals()[ACT.value]()


if __name__ == "__main__":
    cli.run(main)
