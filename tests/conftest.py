"""What every test stands on: eight CPU devices, no network, checked annotations.

The environment is set before anything imports jax, and the import hook before anything
imports medjax; both only take effect the first time.
"""

import os
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FAKE_DEVICES = "--xla_force_host_platform_device_count"

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation: it is to be quick rather than good, and many
# compile the same programs. A size limit makes jax lock what the workers share.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
CACHE = REPOSITORY / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 * 10**9))
xla_flags = os.environ.get("XLA_FLAGS", "")
if FAKE_DEVICES not in xla_flags:
    os.environ["XLA_FLAGS"] = f"{xla_flags} {FAKE_DEVICES}=8".strip()

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# With the numeric tower an int passes for a float, as PEP 484 and mypy have it. The
# hook evaluates this text at each decorated function.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook("medjax", CHECKER)


def pytest_runtest_setup(item):
    """Skip slow tests that would begin after MEDJAX_SLOW_TESTS_UNTIL, in Unix time.

    Where time is limited, all that ran is worth more than a run that was cut off.
    """
    until = os.environ.get("MEDJAX_SLOW_TESTS_UNTIL")
    if until and item.get_closest_marker("slow") and time.time() > float(until):
        pytest.skip("no time left: MEDJAX_SLOW_TESTS_UNTIL")


@pytest.fixture
def optimized():
    """Compile as users do: sums round less when they are vectorised."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip that names where it was looked for."""
    override = os.environ.get("MEDJAX_TEST_DATA")
    folder = Path(override) if override else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder}")
    return folder
