"""Ray clusters of several nodes on one machine."""

import gc
import logging
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

HEAD, *WORKERS = "127.0.0.2", "127.0.0.3", "127.0.0.4"
"""Of loopback. Ray takes 127.0.0.1 itself for the machine's outer address."""


@pytest.fixture(scope="module")
def folder_for_ray() -> Iterator[None]:
    """Keeps the cluster from programs whose `ray.init()` would join it. Short, as the paths of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="memrl-", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.fixture(scope="module")
def three_nodes(folder_for_ray: None) -> Iterator[Any]:
    """A head without CPUs for work, and two workers of two CPUs and a logical GPU each, at addresses of their own."""
    import ray
    from ray.cluster_utils import Cluster

    common = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=common | {"num_cpus": 0, "node_ip_address": HEAD})
    for address in WORKERS:
        cluster.add_node(num_cpus=2, num_gpus=1, node_ip_address=address, **common)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield cluster
    finally:
        with warnings.catch_warnings():
            # Ray drops the handles of the processes that it ends without asking how they ended.
            warnings.filterwarnings("ignore", "subprocess .* is still running", ResourceWarning)
            ray.shutdown()
            cluster.shutdown()
            gc.collect()
