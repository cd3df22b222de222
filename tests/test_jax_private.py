"""Private parts of jax that we use: these tests fail when jax changes them."""

import subprocess
import sys

import pytest

from medjax import jax_private
from tests.hosts import free_address

STORE = """
import sys
import jax
from medjax.jax_private import key_value_store

assert key_value_store() is None
jax.distributed.initialize(sys.argv[1], 1, 0, cluster_detection_method="deactivate")
store = key_value_store()
store.key_value_set("medjax/a", "1")
store.key_value_set("medjax/a", "2", allow_overwrite=True)
print(store.blocking_key_value_get("medjax/a", 1000))
"""


def test_one_process_reads_what_it_put_into_the_store():
    done = subprocess.run(
        [sys.executable, "-c", STORE, free_address()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "2\n", done.stderr


def test_jax_knows_each_cluster_by_the_name_that_we_use():
    from jax._src.clusters import ClusterEnv

    known = {cluster.name for cluster in ClusterEnv._cluster_types}
    assert known >= set(jax_private.CLUSTERS)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "a",
                "SLURM_NTASKS": "3",
                "SLURM_PROCID": "1",
                "SLURM_LOCALID": "0",
            },
            ("slurm", 3),
        ),
        (
            {
                "OMPI_MCA_orte_hnp_uri": "1;tcp://a",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_RANK": "0",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            },
            ("ompi", 2),
        ),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
    ids=["nothing", "SLURM", "Open MPI", "Kubernetes"],
)
def test_a_cluster_is_found_by_its_variables(monkeypatch, environment, found):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert jax_private.detected_cluster() == found
