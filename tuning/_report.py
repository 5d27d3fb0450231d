"""What a search found, as one HTML file that needs no network, and as TensorBoard's table of hyperparameters."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.offline
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from apps._contract import Objective
from kerasdl.files import write_text
from tuning import _journal
from tuning._journal import Trial
from tuning._search import searched

REPORT = "report.html"
_ENOUGH = 8
"""Trials with a score from which on importances are shown."""
_LAYOUT: dict[str, Any] = {"template": "plotly_white", "height": 450, "margin": {"t": 40, "b": 50, "l": 70, "r": 30}}
_STYLE = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;font-size:0.85em;display:block;overflow-x:auto}"
    "td,th{padding:0.25em 0.7em;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}"
    "tr.start{background:#eef5fb}tr.failed{color:#888}"
)


def write(
    folder: Path, trials: Sequence[Trial], parameters: Sequence[Any], objective: Objective, facts: Mapping[str, str]
) -> Path:
    """Writes report.html.

    Args:
        folder: of the search.
        trials: all of it.
        parameters: Keras Tuner's declarations of what was searched.
        objective: of the search.
        facts: what stands above, by name.

    Returns:
        The file.
    """
    scored = [trial for trial in trials if trial.ended and trial.score is not None]
    parts = ["<h1>Search</h1>", _facts(facts)]
    figures: list[tuple[str, str, go.Figure]] = []
    if scored:
        figures.append(("Score against time", "", over_time(scored, objective)))
        figures.append(("Learning curves", "Click on the legend to hide a trial.", curves(trials, objective)))
        figures.append(
            ("Parallel coordinates", "Drag along an axis to choose trials.", coordinates(scored, parameters, objective))
        )
    found = importances(scored, parameters)
    if found:
        words = (
            "By how much a random forest's R² of the scores falls when a parameter's values are permuted, on the "
            f"{len(scored)} trials that it was fitted to: a hint, no proof."
        )
        figures.append(("Importance of the parameters", words, bars(found)))
    for title, words, figure in figures:
        drawn = figure.to_html(full_html=False, include_plotlyjs=False)
        parts.append(f"<h2>{title}</h2>" + (f"<p>{words}</p>" if words else "") + drawn)
    parts.append("<h2>Trials</h2>" + _table(_journal.ranking([*trials], objective), objective))
    script = f"<script>{plotly.offline.get_plotlyjs()}</script>" if figures else ""
    head = f'<meta charset="utf-8"><title>Search</title><style>{_STYLE}</style>{script}'
    write_text(
        folder / REPORT, f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"
    )
    return folder / REPORT


def over_time(scored: Sequence[Trial], objective: Objective) -> go.Figure:
    """Each trial's score at the time it ended, and the best until then."""
    order = sorted(scored, key=lambda trial: trial.ended_at)
    better = max if objective.direction == "max" else min
    best = [better(trial.score or 0 for trial in order[: i + 1]) for i in range(len(order))]
    minutes = [trial.ended_at / 60 for trial in order]
    words = [_hover(trial, objective) for trial in order]
    figure = go.Figure(layout=_LAYOUT)
    figure.add_scatter(x=minutes, y=[trial.score for trial in order], mode="markers", text=words, name="trial")
    figure.add_scatter(x=minutes, y=best, mode="lines", line_shape="hv", name="best so far")
    figure.update_layout(xaxis_title="minutes", yaxis_title=objective.metric)
    return figure


def curves(trials: Sequence[Trial], objective: Objective) -> go.Figure:
    """The metric of each trial over its epochs, with cross-validation those of its first fold."""
    figure = go.Figure(layout=_LAYOUT)
    for trial in _journal.ranking([*trials], objective):
        rows = [row for row in trial.curve if objective.metric in row]
        if rows and trial.same_as is None:
            figure.add_scatter(
                x=[row["epoch"] for row in rows],
                y=[row[objective.metric] for row in rows],
                mode="lines+markers" if len(rows) == 1 else "lines",
                name=f"trial {trial.number}",
                text=_hover(trial, objective),
                line_dash="dot" if trial.status == "pruned" else "solid",
            )
    longest = max((len(trial.curve) for trial in trials), default=1)
    figure.update_layout(xaxis_title="epoch", xaxis_dtick=-(-longest // 10), yaxis_title=objective.metric)
    return figure


def coordinates(scored: Sequence[Trial], parameters: Sequence[Any], objective: Objective) -> go.Figure:
    """A line a trial through the axes of all parameters, coloured by its score."""
    axes = []
    for name, position, labels in _positions(scored, parameters):
        axis: dict[str, Any] = {"label": name, "values": position}
        if labels is not None:
            places = [place for place, _ in labels]
            axis |= {"tickvals": places, "ticktext": [text for _, text in labels]}
            if places[0] < places[-1]:
                axis["range"] = [places[0], places[-1]]  # else marks beyond the trials' values are drawn off the axis
        axes.append(axis)
    scores = [trial.score for trial in scored]
    line = {"color": scores, "colorscale": "Viridis", "showscale": True, "reversescale": objective.direction == "min"}
    axes.append({"label": objective.metric, "values": scores})
    return go.Figure(go.Parcoords(line=line, dimensions=axes), layout=_LAYOUT | {"margin": {"t": 60, "l": 90, "r": 60}})


def _positions(
    scored: Sequence[Trial], parameters: Sequence[Any]
) -> list[tuple[str, list[float], list[tuple[float, str]] | None]]:
    """Of each parameter its name, where each trial stands on its axis, and the marks of the axis."""
    found = []
    for parameter in parameters:
        values = [trial.values.get(parameter.name, parameter.default) for trial in scored]
        if getattr(parameter, "sampling", None) == "log":
            low, high = math.log10(parameter.min_value), math.log10(parameter.max_value)
            marks = [low + (high - low) * step / 4 for step in range(5)]
            labels: list[tuple[float, str]] | None = [(mark, f"{10**mark:.2g}") for mark in marks]
            position = [math.log10(value) for value in values]
        elif isinstance(values[0], (int, float)) and not isinstance(values[0], bool):
            known = sorted(getattr(parameter, "values", []))
            labels, position = [(float(value), str(value)) for value in known] or None, [float(v) for v in values]
        else:
            names = [str(value) for value in getattr(parameter, "values", [])] or sorted({str(one) for one in values})
            labels = [(float(place), text) for place, text in enumerate(names)]
            position = [float(names.index(str(value))) for value in values]
        found.append((parameter.name, position, labels))
    return found


def importances(scored: Sequence[Trial], parameters: Sequence[Any]) -> dict[str, float]:
    """Permutation importance of each parameter; nothing where the trials are too few, or have one score.

    Source: Breiman 2001, "Random Forests", section 10.
    """
    scores = np.array([trial.score for trial in scored], float)
    if len(scored) < _ENOUGH or np.ptp(scores) == 0:
        return {}
    names = [parameter.name for parameter in parameters]
    points = np.array(
        [[p.value_to_prob(trial.values.get(p.name, p.default)) for p in parameters] for trial in scored], float
    )
    forest = RandomForestRegressor(200, random_state=0).fit(points, scores)
    drops = permutation_importance(forest, points, scores, n_repeats=20, random_state=0).importances_mean
    found = dict(zip(names, (float(drop) for drop in drops), strict=True))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def bars(found: Mapping[str, float]) -> go.Figure:
    """A bar a parameter, the most important on top."""
    names = list(found)[::-1]
    figure = go.Figure(go.Bar(x=[found[name] for name in names], y=names, orientation="h"), layout=_LAYOUT)
    figure.update_layout(xaxis_title="fall of R²")
    return figure


def write_tensorboard(folder: Path, trials: Sequence[Trial], objective: Objective) -> Path:
    """Writes the trials for TensorBoard's HPARAMS tab.

    Returns:
        The folder to give to `tensorboard --logdir`.
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    target = folder / "tensorboard"
    for trial in trials:
        if not trial.ended or trial.score is None:
            continue
        place = target / f"{trial.number:04d}"
        if place.exists():
            continue
        writer = tf.summary.create_file_writer(str(place))
        with writer.as_default():
            api.hparams(searched(trial.values), trial_id=f"{trial.number:04d}")
            for row in trial.curve:
                if objective.metric in row:
                    tf.summary.scalar(objective.metric, row[objective.metric], step=int(row["epoch"]))
            tf.summary.scalar("best", trial.score, step=trial.best_epoch)
        writer.close()
    return target


def _facts(facts: Mapping[str, str]) -> str:
    rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items())
    return f"<table>{''.join(rows)}</table>"


def _hover(trial: Trial, objective: Objective) -> str:
    values = "<br>".join(f"{name} {_cell(value)}" for name, value in searched(trial.values).items())
    return f"trial {trial.number}, {trial.status}<br>{objective.metric} {_cell(trial.score)}<br>{values}"


def _table(ranked: Sequence[Trial], objective: Objective) -> str:
    names = list(dict.fromkeys(name for trial in ranked for name in searched(trial.values)))
    headings = ["trial", objective.metric, "status", *names, "epochs", "seconds", "reason"]
    lines = ["".join(f"<th>{html.escape(heading)}</th>" for heading in headings)]
    rows = [f"<tr>{lines[0]}</tr>"]
    for trial in ranked:
        reason = f"{trial.kind}: {trial.reason}" if trial.kind else trial.reason
        cells = [
            trial.number,
            trial.score,
            trial.status,
            *(trial.values.get(name) for name in names),
            len(trial.curve) or trial.epochs,
            trial.seconds,
            reason,
        ]
        kind = "start" if trial.number == 0 else trial.status
        rows.append(
            f'<tr class="{kind}">' + "".join(f"<td>{html.escape(_cell(cell))}</td>" for cell in cells) + "</tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
