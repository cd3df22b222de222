"""Reach the two parts of jax that have no public name, in this one place.

jax 0.10.2 offers neither its key-value store nor its detection of clusters publicly.
`tests/test_jax_private.py` fails when a new version of jax changes either.
"""

from typing import Any

# jax's names of the environments that know by themselves which processes take part.
# Kubernetes is left out: jax asks a server, which fails in a pod that is no job.
CLUSTERS = ("slurm", "ompi", "gcetpu", "gketpu")


def key_value_store() -> Any:
    """Return the client of the key-value store that joined processes share.

    None before `jax.distributed.initialize`.
    """
    from jax._src.distributed import global_state

    return global_state.client


def detected_cluster() -> tuple[str, int] | None:
    """Return jax's name of the cluster that started this process, and its processes.

    None if no cluster of `CLUSTERS` did.
    """
    from jax._src.clusters import ClusterEnv

    for cluster in ClusterEnv._cluster_types:
        if cluster.name in CLUSTERS and cluster.is_env_present():
            return cluster.name, cluster.get_process_count()
    return None
