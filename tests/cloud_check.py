"""Loads the configurations of jobs/cloud with the tools that they are for, for `make cloud-check`.

    PYTHON_WITH_THE_TOOL tests/cloud_check.py cluster
    PYTHON_WITH_THE_TOOL tests/cloud_check.py skypilot

Neither needs credentials or a network. Nothing is looked up in a cloud, so a region, an image or an instance
type that does not exist is not found.
"""

import copy
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLOUD = Path(__file__).resolve().parents[1] / "jobs" / "cloud"


def read(name: str) -> Any:
    """Read a YAML file of jobs/cloud; both tools bring PyYAML."""
    return importlib.import_module("yaml").safe_load((CLOUD / name).read_text(encoding="utf-8"))


def cluster() -> str:
    """Load cluster.yaml by the schema of AWS ParallelCluster."""
    schema = importlib.import_module("pcluster.schemas.cluster_schema").ClusterSchema(cluster_name="sage")
    content = read("cluster.yaml")
    os.environ["AWS_DEFAULT_REGION"] = content["Region"]  # as the tool does before it loads a file
    loaded = schema.load(content)
    queues = {queue.name: queue for queue in loaded.scheduling.queues}
    assert list(queues) == [queue["Name"] for queue in content["Scheduling"]["SlurmQueues"]]
    unknown = copy.deepcopy(content)
    unknown["HeadNode"]["InstanceTyp"] = "m7i.large"
    refused("an unknown key", lambda: schema.load(unknown))
    counts = [f"{name}: at most {queue.compute_resources[0].max_count}" for name, queue in queues.items()]
    return f"cluster.yaml is a configuration of a cluster with the queues {'; '.join(counts)}"


def skypilot() -> str:
    """Parse skypilot.yaml by SkyPilot."""
    sky: Any = importlib.import_module("sky")
    content = read("skypilot.yaml")
    task = sky.Task.from_yaml(str(CLOUD / "skypilot.yaml"))
    assert (task.name, task.num_nodes, task.run) == (content["name"], content["num_nodes"], content["run"])
    (asked,) = task.resources
    assert asked.use_spot
    assert asked.autostop_config.down
    refused("an unknown key", lambda: sky.Task.from_yaml_config({**content, "num_node": 2}))
    return f"skypilot.yaml is a task of {task.num_nodes} nodes with {asked}"


def refused(what: str, load: Callable[[], object]) -> None:
    """Fail unless the tool refuses this."""
    try:
        load()
    except Exception as error:  # each tool has its own
        print(f"refused as it should be: {what}: {str(error).splitlines()[0][:200]}")
    else:
        raise SystemExit(f"the tool accepts {what}")


if __name__ == "__main__":
    print({"cluster": cluster, "skypilot": skypilot}[sys.argv[1]]())
