"""Started by a test as a process: prepares a store on a Ray cluster whose only working node is killed meanwhile and replaced,
and embeds two scans of it there.

The head takes no job, so whatever runs, runs on the node that dies: the kill cannot come too late.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_worker_niceness": "0",  # Ray's workers are nice (15): beside other tests they would wait for minutes
}

from ray.cluster_utils import Cluster as Nodes

from ctfoundry.ingest import prepare_store
from ctfoundry.ingest.cluster import TASK, Cluster
from ctfoundry.retrieval.embed import ModelOf, embed, load_index
from ctfoundry.retrieval.sources import resolve

HEAD = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
WORKER = {"num_cpus": 1, "object_store_memory": 80 << 20}


def at_work(parent: int) -> list[int]:
    """Children of a process that do a task now; Ray names workers by what they do (``ray::NAME``, or ``ray::IDLE``)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            same = int((place / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            if same and (place / "cmdline").read_text().startswith(f"ray::{TASK}"):
                found.append(int(place.name))
    return found


def embed_on(address: str, store: Path) -> dict[str, int]:
    """Two scans of the store embedded by the node that is there now: how many came, and how many vectors there are."""
    out, model = store.parent / "emb", ModelOf("ct-fm-tiny", "random")
    scans = [source.scan for source in resolve([str(store)]).scans[:2]]
    outcome = embed(scans, model.load(), out, executor=Cluster(address, workers=1), model=model)
    return {"embedded": len(outcome.done), "vectors": len(load_index(out))}


def main(sources: Path, store: Path, kill_after: int) -> None:
    nodes = Nodes(initialize_head=True, head_node_args=HEAD)
    first = nodes.add_node(**WORKER)
    nodes.wait_for_nodes()
    (raylet,) = first.all_processes["raylet"]
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:  # nodes come and go from the main thread only
        run = pool.submit(
            prepare_store, [sources], store, "native", executor=Cluster(nodes.address, workers=4), say=said.append
        )
        while len(done := list((store / "scans").glob("[!.]*.json"))) < kill_after or not (
            busy := at_work(raylet.process.pid)
        ):
            if run.done():
                break
            time.sleep(0.01)
        else:
            for worker in busy:  # a machine goes with all of its processes; Ray's helper kills the raylet alone
                os.kill(worker, signal.SIGKILL)
            nodes.remove_node(first, allow_graceful=False)
            nodes.add_node(**WORKER)
        outcome = run.result()
    embedded = embed_on(nodes.address, store)
    print(
        json.dumps(
            {"added": len(outcome.added), "killed": len(done), "said": said, "left_out": outcome.rules} | embedded
        )
    )
    nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
