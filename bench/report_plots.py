"""The report as pictures: SVG by matplotlib, the same bytes from the same numbers.

Without matplotlib there are none; the tables have all of it.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from bench.report import Report
from bench.report_verdicts import FLOOR, OURS, others, peers_of, rows_of, values
from bench.scenarios_latency import LOADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The cases of which the peers are drawn beside each other.
_CASES: Final = ("ping-pong", "pipelined", "fan-out-1000")
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "imserver",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
_COLOURS: Final = {FLOOR: "#888888", OURS: "#c2410c"}


def obstacle() -> str:
    """Why there are no plots; "" when there can be."""
    return "" if find_spec("matplotlib") else "no matplotlib: pip install matplotlib"


def draw(report: Report, directory: Path) -> list[str]:
    """Write a picture for each table that has numbers; their names, without ".svg". Those that
    are there when there can be no new ones."""
    if obstacle():
        return sorted(path.stem for path in directory.glob("*.svg"))
    import matplotlib

    matplotlib.use("svg")
    pictures: dict[str, tuple[int, Callable[[list[Axes]], None]]] = {
        name: (1, partial(_series, report, name))
        for name in report["series"]
        if len(rows_of(report, name)) > 1
    }
    shown = [name for name in _CASES if others(report["results"].get(name, {"samples": {}}))]
    if shown:
        pictures["peers"] = len(shown), partial(_peers, report, shown)
    if "latency" in report["results"]:
        pictures["latency"] = len(LOADS), partial(_latency, report)
    with matplotlib.rc_context(_STYLE):
        for name, (columns, fill) in pictures.items():
            _picture(directory / f"{name}.svg", columns, fill)
    return list(pictures)


def _picture(path: Path, columns: int, fill: Callable[[list["Axes"]], None]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 if columns == 1 else 3.2 * columns, 3.4), layout="constrained")
    fill(list(figure.subplots(1, columns, squeeze=False)[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _look(peer: str) -> dict[str, Any]:
    colour = {"color": _COLOURS[peer]} if peer in _COLOURS else {}
    return {"label": peer, "linestyle": "--" if peer == FLOOR else "-", **colour}


def _series(report: Report, name: str, all_axes: list["Axes"]) -> None:
    rows, about, axes = rows_of(report, name), report["series"][name], all_axes[0]
    for peer in peers_of(rows):
        points = [(row["x"], values(row, peer)) for row in rows if values(row, peer)]
        middles = [median(found) for _, found in points]
        below = [middle - min(found) for (_, found), middle in zip(points, middles, strict=True)]
        above = [max(found) - middle for (_, found), middle in zip(points, middles, strict=True)]
        xs = [x for x, _ in points]
        axes.errorbar(xs, middles, (below, above), marker=".", capsize=2, **_look(peer))
    axes.set_xscale("log")
    axes.set_xticks([row["x"] for row in rows], [f"{row['x']:,}" for row in rows])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(about["axis"])
    axes.set_title(about["title"])
    axes.legend()


def _peers(report: Report, shown: list[str], all_axes: list["Axes"]) -> None:
    for name, axes in zip(shown, all_axes, strict=True):
        row = report["results"][name]
        found = {peer: median(values(row, peer)) for peer in row["samples"]}
        names = sorted(found, key=found.__getitem__, reverse=True)
        # Points: on a scale of powers the length of a bar would mean nothing.
        for peer in names:
            axes.plot(found[peer], peer, "o", color=_COLOURS.get(peer, "#64748b"))
            text = f"{found[peer]:.3g}"
            axes.annotate(text, (found[peer], peer), (6, -3), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
        axes.set_xticks([])
        axes.set_title(f"{name}, {row['unit']}")
        axes.margins(x=0.3)


def _latency(report: Report, all_axes: list["Axes"]) -> None:
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
    for load, axes in zip(LOADS, all_axes, strict=True):
        for peer, samples in report["results"]["latency"]["samples"].items():
            details = [sample["details"] for sample in samples]
            ys = [median(one[f"{load}_{name}"] for one in details) for name in shares]
            axes.plot([1 / (1 - share) for share in shares.values()], ys, marker=".", **_look(peer))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([1 / (1 - share) for share in shares.values()], list(shares))
        axes.minorticks_off()
        axes.set_title(f"µs at {load} % of capacity")
    all_axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
