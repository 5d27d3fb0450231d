"""What a search goes on from: one file of lines, each written whole before the next thing happens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apps._contract import Objective
from kerasdl.errors import UserError
from kerasdl.files import as_json

Status = Literal["running", "finished", "pruned", "failed"]
JOURNAL = "search.jsonl"


@dataclass
class Trial:
    """A configuration that was proposed, and what became of it.

    Attributes:
        number: from 0, which is the starting configuration.
        values: of the parameters that are searched.
        epochs: at most; those of its configuration.
        status: `pruned` trials were ended early; their score is that of their best epoch.
        score: of the best epoch on the validation data; None before the end, and of a failed one.
        best_epoch: its number.
        kind: of a failure, such as `diverged`, `memory`, `limit`, `killed`, or the class of the error.
        reason: why it failed or was pruned, in a line.
        seconds: of training, and of what is around it.
        costs: number of parameters, and what else was measured.
        same_as: number of the trial with the same configuration and epochs whose score it has.
        rows: of its log, an epoch each; with cross-validation of all folds, whose number is their `fold`.
        attempts: how often a worker has died with it.
        ended_at: seconds from the beginning of the search to its end.
    """

    number: int
    values: dict[str, Any]
    epochs: int
    status: Status = "running"
    score: float | None = None
    best_epoch: int = 0
    kind: str = ""
    reason: str = ""
    seconds: float = 0.0
    costs: dict[str, float] = field(default_factory=dict)
    same_as: int | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    attempts: int = 0
    ended_at: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status != "running"

    @property
    def length(self) -> int:
        """Epochs of a whole training: also those that an application adds to the ones of its schedule."""
        return max(self.epochs, len(self.curve))

    @property
    def curve(self) -> list[dict[str, float]]:
        """The rows of the first fold, which are all without cross-validation."""
        return [row for row in self.rows if row.get("fold", 1) == 1]


def ranking(trials: list[Trial], objective: Objective) -> list[Trial]:
    """Best first; those without a score last, in their order; a pruned trial stands below every finished one."""
    sign = -1 if objective.direction == "max" else 1

    def key(trial: Trial) -> tuple[bool, bool, float]:
        return trial.score is None, trial.status != "finished", sign * (trial.score or 0)

    return sorted(trials, key=key)


class Journal:
    """The lines of `search.jsonl`: what the search is, each trial's beginning, each trial's end.

    Args:
        folder: of the search.

    Raises:
        UserError: the file is no journal.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.lines: list[dict[str, Any]] = []
        self._whole: int | None = None
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]  # a kill may have cut the last line
        try:
            self.lines = [json.loads(line) for line in whole.splitlines()]
            valid = all(isinstance(line, dict) for line in self.lines) and (
                not self.lines or isinstance(self.lines[0].get("search"), dict)
            )
        except ValueError:
            valid = False
        if not valid:
            raise UserError(f"{self.path} is damaged, or no journal of a search; restore it, or give another --folder")
        if len(whole) < len(raw):
            self._whole = len(whole)

    @property
    def settings(self) -> dict[str, Any] | None:
        """What the search is; None before it began."""
        return self.lines[0]["search"] if self.lines else None

    def check(self, settings: Mapping[str, Any]) -> None:
        """Holds the journal to what a search is now; of settings that are not given yet it does not ask.

        Raises:
            UserError: it is that of another search.
        """
        if self.settings is None:
            return
        now = json.loads(as_json(settings))
        if words := changed({name: value for name, value in self.settings.items() if name in now}, now):
            raise UserError(f"{self.path.parent} holds another search: {words}; give another --folder")

    @property
    def spent_seconds(self) -> float:
        """Time that the search has run, up to the last line."""
        return max((line.get("spent", 0.0) for line in self.lines), default=0.0)

    def add(self, **line: Any) -> None:
        """Writes a line, to the disk.

        Raises:
            OSError: the disk is full, or the like.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = as_json(line) + "\n"
        if self._whole is not None:  # not while it is read: another process may be writing it
            os.truncate(self.path, self._whole)
            self._whole = None
        with self.path.open("ab") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        self.lines.append(json.loads(text))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two searches differ, in words; nothing if they do not."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = _by_name(before.get(name)), _by_name(now.get(name))
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(f"{name}: {changed(old, new)}")
        else:
            found.append(f"{name} was {_short(old)}, is {_short(new)}")
    return "; ".join(found)


def _by_name(value: Any) -> Any:
    """The parameters of a space by their names; other values as they are."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return {item["name"]: item for item in value}
    return value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
