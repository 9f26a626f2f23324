"""How far a run is and how long it will take: a bar where a terminal can show one, plain lines
elsewhere.

Steps differ in length, so each comes with the seconds that it is thought to take; how wrong that
was so far corrects what is left.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    def begin(self, what: str) -> None:
        """The next of the steps begins."""

    def say(self, line: str) -> None:
        """A line that stays."""


class Clock:
    """The time left, from the seconds that the steps were thought to take."""

    def __init__(self, steps_s: Sequence[float]) -> None:
        self.steps_s, self.step = steps_s, 0
        self._began_s = time.monotonic()

    def left_s(self) -> float:
        """Before step number `step`, counted from 0."""
        thought_s = sum(self.steps_s[: self.step])
        wrong_by = (time.monotonic() - self._began_s) / thought_s if thought_s else 1.0
        return sum(self.steps_s[self.step :]) * wrong_by

    def text(self) -> str:
        minutes, seconds = divmod(round(self.left_s()), 60)
        return f"{minutes}:{seconds:02} left"


class Lines:
    """One line a step, on stderr."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def begin(self, what: str) -> None:
        left = self._clock.text()
        self._clock.step += 1
        self.say(f"[{self._clock.step}/{len(self._clock.steps_s)}, {left}] {what}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def shown(steps_s: Sequence[float]) -> Iterator[Progress]:
    """A display for steps that are thought to take so many seconds."""
    clock = Clock(steps_s)
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars
    except ImportError:
        yield Lines(clock)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(clock)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=len(steps_s), completed=-1)

        class Bar:
            def begin(self, what: str) -> None:
                bars.update(task, advance=1, description=f"{clock.text()}  {what}")
                clock.step += 1

            def say(self, line: str) -> None:
                console.print(line, markup=False, highlight=False)

        yield Bar()
