"""A search on a Ray cluster of two nodes on this machine, one of which goes away."""

import os
import time

import pytest
from simulated import Silent

from apps import cifar10
from kerasdl.errors import UserError
from tuning import _search
from tuning.__main__ import main
from tuning._space import Space, parsed
from tuning._worker import Task

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="needs the extra `ray`")
cluster_utils = pytest.importorskip("ray.cluster_utils")
_ray = pytest.importorskip("tuning._ray")


@pytest.fixture
def cluster():
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20}
    )
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_search_loses_and_doubles_no_trial_when_a_node_goes_away(cluster, tmp_path):
    words = ["learning_rate=1e-3..1e-1:log", "padding=0,1,2,3"]
    usual = {"architecture": "lenet", "precision": "float32", "epochs": 6, "batch_size": 250}
    engine = _ray.Cluster(Task("cifar10", True, {}), 2, address=cluster.address)
    search = _search.Search(
        tmp_path,
        {"application": "cifar10"},
        Space(parsed(words, cifar10.Config), cifar10.Config(**usual)),
        cifar10.OBJECTIVE,
        algorithm="random",
        seed=0,
        budget=_search.Budget(5),
        rule="none",
        engine=engine,
        watcher=Silent(),
    )
    hear, heard = search._hear, set()

    def hearing(event):
        hear(event)
        heard.add(event.number)
        if len(heard) == 2 and cluster.second is not None:
            cluster.remove_node(cluster.second, allow_graceful=False)
            cluster.second = None

    search._hear = hearing
    began = time.monotonic()
    assert search.run() == "5 trials are done"
    assert time.monotonic() - began < 300
    assert cluster.second is None
    assert [trial.status for trial in search.trials] == ["finished"] * 5
    assert [len(trial.rows) for trial in search.trials] == [6] * 5
    assert sum(trial.attempts for trial in search.trials) == 1
    for trial in search.trials:
        log = (tmp_path / "trials" / f"{trial.number:04d}" / "log.csv").read_text().splitlines()
        assert len(log) == 7


def test_no_cluster_is_one_line(tmp_path, capsys):
    with pytest.raises(UserError, match=r"no Ray cluster at --address 127\.0\.0\.1:1 .*ray start --head"):
        _ray.Cluster(Task("cifar10", True, {}), 1, address="127.0.0.1:1")
    words = ["cifar10", "--tiny", "--engine", "ray", "--memory-limit", "100", "--folder", str(tmp_path)]
    assert main(words) == 2
    assert "--memory-limit is for --engine local" in capsys.readouterr().err
