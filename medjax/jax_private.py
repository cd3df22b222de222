"""Use the two parts of jax that have no public name. Only this module does.

In jax 0.10.2 the key-value store and the detection of clusters are not public.
`tests/test_jax_private.py` fails when a new version of jax changes one of them.
"""

from typing import Any

# jax's names of the environments that provide the processes of a run. Kubernetes is
# left out, because jax asks a server, which fails in a pod that is not a job.
CLUSTERS = ("slurm", "ompi", "gcetpu", "gketpu")


def key_value_store() -> Any:
    """Return the client of the key-value store that joined processes share.

    It is None before `jax.distributed.initialize`.
    """
    from jax._src.distributed import global_state

    return global_state.client


def detected_cluster() -> tuple[str, int] | None:
    """Return the cluster that started this process, and its number of processes.

    The cluster is one of `CLUSTERS`. Return None if none of them started this process.
    """
    from jax._src.clusters import ClusterEnv

    for cluster in ClusterEnv._cluster_types:
        if cluster.name in CLUSTERS and cluster.is_env_present():
            return cluster.name, cluster.get_process_count()
    return None
