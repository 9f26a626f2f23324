"""What the samples say: medians, ratios, and whether a target is met.

A ratio is that of two samples of the same repeat, taken one after the other, so that a slow
minute of the machine hits both. Medians come last.
"""

from collections.abc import Iterable
from statistics import median
from typing import Final, NamedTuple

from bench.report import Report, Result

OURS: Final = "imserver"
FLOOR: Final = "floor"
#: Ourselves in another way, to compare with; no peer to be ahead of.
OURS_OTHERWISE: Final = "imserver-tcp"


class Verdict(NamedTuple):
    """`found` is None where a target was not measured. `is_disturbed` when at least half of the
    samples behind it carry a remark: then it should be taken again on a quiet machine."""

    subject: str  # the row or series
    of: str
    found: float | None
    limit: float
    is_disturbed: bool
    peer: str = ""  # of "ahead": the one that it is ahead of; empty: the best

    @property
    def is_met(self) -> bool:
        if self.found is None:
            return False
        if self.of == "more":
            return self.found > self.limit
        return self.found >= self.limit if self.of == "ahead" else self.found <= self.limit

    @property
    def target(self) -> str:
        signs = {
            "value": f"≤ {self.limit:g}",
            "floor": f"≤ {self.limit:g} × floor",
            "more": f"> {self.limit:g}",
            "ahead": f"≥ {self.limit:g} × ahead" + (f" of {self.peer}" if self.peer else ""),
            "flat": f"≤ +{self.limit:.0%}",
        }
        return signs[self.of]

    def __str__(self) -> str:
        if self.found is None:
            return "not measured"
        return ("met" if self.is_met else "MISSED") + (", disturbed" if self.is_disturbed else "")


def verdicts(report: Report) -> list[Verdict]:
    """One for each target in the report."""
    found = [one for name, row in report["results"].items() for one in of_row(name, row)]
    return found + [one for name in report["series"] if (one := of_series(report, name))]


def of_row(name: str, result: Result) -> list[Verdict]:
    made = []
    for target in result["targets"]:
        of, peer = target["of"], target.get("peer", "")
        behind: tuple[str, ...] = (OURS,)
        if of == "floor":
            found, behind = of_floor(result), (OURS, FLOOR)
        elif of == "ahead":
            found, behind = ahead(result, peer), (OURS, peer or best_peer(result))
        else:
            found = values(result, OURS)
        disturbed = _is_disturbed([result], behind)
        made.append(Verdict(name, of, middle(found), target["limit"], disturbed, peer))
    return made


def of_series(report: Report, name: str) -> Verdict | None:
    """Whether it is flat, which a part that shrinks is; None where that is no question, or the
    series was not taken."""
    limit, rows = report["series"][name]["flat"], rows_of(report, name)
    if limit is None or len(rows) < 2:
        return None
    grown = [one for one in own_growth(rows)[1:] if one is not None]
    disturbed = _is_disturbed(rows, (OURS, FLOOR))
    return Verdict(name, "flat", max(grown, default=None), limit, disturbed)


def rows_of(report: Report, series: str) -> list[Result]:
    """The rows of a series, by their number."""
    rows = [row for row in report["results"].values() if row["series"] == series]
    return sorted(rows, key=lambda row: float(row["x"]))


def peers_of(rows: list[Result]) -> list[str]:
    """Who was measured along a series, and not in one row of it for another reason."""
    seen = [peer for row in rows for peer in row["samples"]]
    return [peer for peer in dict.fromkeys(seen) if 2 * seen.count(peer) > len(rows)]


def own_growth(rows: list[Result]) -> list[float | None]:
    """How far our own part of the cost, what is beyond the floor, has grown since the first row,
    as a share of the whole cost there. The kernel's own part grows too, and is not ours."""

    def own(row: Result) -> dict[int, float]:
        ours, floor = by_repeat(row, OURS), by_repeat(row, FLOOR)
        return {repeat: ours[repeat] - floor[repeat] for repeat in ours.keys() & floor.keys()}

    first, cost = own(rows[0]), by_repeat(rows[0], OURS)
    return [
        middle([(now[repeat] - first[repeat]) / cost[repeat] for repeat in now.keys() & first])
        for now in map(own, rows)
    ]


def by_repeat(result: Result, peer: str) -> dict[int, float]:
    return {sample["repeat"]: sample["value"] for sample in result["samples"].get(peer, ())}


def values(result: Result, peer: str) -> list[float]:
    return list(by_repeat(result, peer).values())


def middle(found: Iterable[float]) -> float | None:
    found = list(found)
    return median(found) if found else None


def others(result: Result) -> list[str]:
    """The peers that were measured beside floor and us."""
    return [peer for peer in result["samples"] if peer not in (OURS, FLOOR, OURS_OTHERWISE)]


def best_peer(result: Result) -> str:
    """The one with the lowest median; "" without any."""
    return min(others(result), key=lambda peer: median(values(result, peer)), default="")


def of_floor(result: Result) -> list[float]:
    """Our cost over the floor's, each of one repeat."""
    ours, floor = by_repeat(result, OURS), by_repeat(result, FLOOR)
    return [ours[repeat] / floor[repeat] for repeat in ours if floor.get(repeat, 0) > 0]


def ahead(result: Result, peer: str = "") -> list[float]:
    """The cost of the cheapest peer of a repeat, or of that one, over ours."""
    ours = by_repeat(result, OURS)
    peers = [by_repeat(result, other) for other in ([peer] if peer else others(result))]
    ratios = []
    for repeat, value in ours.items():
        beside = [found[repeat] for found in peers if repeat in found]
        if beside and value > 0:
            ratios.append(min(beside) / value)
    return ratios


def _is_disturbed(rows: Iterable[Result], peers: tuple[str, ...]) -> bool:
    samples = [one for row in rows for peer in peers for one in row["samples"].get(peer, ())]
    return 2 * sum(bool(sample["remarks"]) for sample in samples) >= max(len(samples), 1)
