"""A Ray cluster of two nodes on this machine, the second of which may be killed (`nodes.second`)."""

import contextlib
from collections.abc import Iterator
from typing import Any

# A node that is gone is noticed after a second; by default it takes half a minute.
_NOTICE = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


@contextlib.contextmanager
def two_nodes(first_cpus: int = 1, second_cpus: int = 2) -> Iterator[Any]:
    """Within it Ray is connected to the cluster; the driver is on its first node."""
    import ray
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 << 20}
    head = {"num_cpus": first_cpus, "include_dashboard": False, "_system_config": _NOTICE, **small}
    nodes: Any = Cluster(initialize_head=True, head_node_args=head)
    nodes.second = nodes.add_node(num_cpus=second_cpus, **small)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
