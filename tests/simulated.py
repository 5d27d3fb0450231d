"""An engine whose trials are computed and not trained."""

import json
from pathlib import Path

from tuning._worker import Event


class Simulated:
    """Trials whose scores follow from their configuration.

    Args:
        score: (configuration as in config.json, epoch) -> the metric; or raises.
        metric: its name in the log.
        workers: trials at the same time.
    """

    def __init__(self, score, metric="val_accuracy", workers=1):
        self.score, self.metric, self.workers = score, metric, workers
        self.running = {}
        self.started = []
        self.closed = False

    @property
    def free(self):
        return self.workers - len(self.running)

    def start(self, number, folder, *, evaluate=False):
        config = json.loads((Path(folder) / "config.json").read_text())
        log = Path(folder) / "log.csv"
        rows = [] if not log.exists() else log.read_text().splitlines()[1:]
        self.running[number] = {"folder": Path(folder), "config": config, "epoch": len(rows), "go_on": True}
        self.started.append((number, len(rows)))

    def answer(self, number, go_on):
        self.running[number]["go_on"] = go_on

    def wait(self, seconds):
        number = min(self.running, key=lambda one: self.running[one]["epoch"])
        trial = self.running[number]
        try:
            done = trial["epoch"] >= trial["config"]["epochs"]
            if not done and trial["go_on"]:
                trial["epoch"] += 1
                row = {"epoch": trial["epoch"], self.metric: self.score(trial["config"], trial["epoch"])}
                log = trial["folder"] / "log.csv"
                head = "" if log.exists() else ",".join(row) + "\n"
                with log.open("a") as stream:
                    stream.write(head + ",".join(map(str, row.values())) + "\n")
                return [Event(number, "epoch", row)]
        except ValueError as error:
            del self.running[number]
            return [Event(number, "ended", {"status": "failed", "kind": "ValueError", "reason": str(error)})]
        del self.running[number]
        scores = [self.score(trial["config"], epoch) for epoch in range(1, trial["epoch"] + 1)]
        best = max(scores)
        content = {"status": "finished" if trial["go_on"] else "pruned", "score": best, "seconds": 1.0}
        return [Event(number, "ended", {**content, "best_epoch": 1 + scores.index(best), "parameters": 10})]

    def close(self):
        self.running, self.closed = {}, True


class Silent:
    """Watches and says nothing."""

    def changed(self, search):
        pass

    def ended(self, search, trial):
        pass
