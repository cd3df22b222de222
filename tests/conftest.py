"""Set up every test: one CPU device, no network, checked annotations.

The environment is set before any import of jax, and the import hook before any import
of medjax. After the first import, neither has an effect.
"""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import compile_cache, memory, sharding

REPOSITORY = Path(__file__).resolve().parents[1]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation takes most of the time, so programs must compile fast, not run fast.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# XLA's former way of emitting loops compiles in 40% of the time. XLA refuses flags that
# it does not know, so only the tested version gets this one.
if f"jaxlib=={version('jaxlib')}\n" in (REPOSITORY / "constraints.txt").read_text():
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
for name, value in compile_cache.settings().items():
    os.environ.setdefault(name, value)

import jax  # noqa: E402
import jax.extend.backend  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# With the numeric tower, an int is accepted as a float, as in PEP 484 and mypy. The
# hook evaluates this text at each decorated function.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook("medjax", CHECKER)


def pytest_addoption(parser):
    memory.add_option(parser)
    sharding.add_option(parser)


def pytest_configure(config):
    """Clean up the compile cache once, before the workers start."""
    if not hasattr(config, "workerinput"):
        compile_cache.remove_unused()
    peak = memory.PeakMemory(config.getoption("--memory-limit"))
    config.pluginmanager.register(peak, "peak-memory")


def pytest_collection_modifyitems(config, items):
    sharding.select(config, items)


@pytest.fixture(scope="module", autouse=True)
def jax_devices(request):
    """Start each module with its CPU devices and without compiled programs.

    Without this, compiled programs of earlier modules would grow to gigabytes. The
    module's marker `devices` sets the number of devices; the default is one.
    """
    marker = request.node.get_closest_marker("devices")
    jax.extend.backend.clear_backends()
    memory.release()
    jax.config.update("jax_num_cpu_devices", marker.args[0] if marker else 1)


@pytest.fixture
def optimized():
    """Compile as users do, because vectorised sums have smaller rounding errors."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data, or skip the test if it is missing."""
    folder = os.environ.get("MEDJAX_TEST_DATA")
    if not folder:
        pytest.skip("real data absent: MEDJAX_TEST_DATA is not set")
    if not Path(folder).is_dir():
        pytest.skip(f"real data absent: MEDJAX_TEST_DATA={folder} is not a folder")
    return Path(folder)
