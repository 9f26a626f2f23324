"""How far a run is: a bar where a terminal can show one, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    def begin(self, what: str) -> None:
        """The next of the steps begins."""

    def say(self, line: str) -> None:
        """A line that stays."""


class Lines:
    """One line a step, on stderr."""

    def __init__(self, steps: int) -> None:
        self._steps, self._step = steps, 0

    def begin(self, what: str) -> None:
        self._step += 1
        self.say(f"[{self._step}/{self._steps}] {what}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def shown(steps: int) -> Iterator[Progress]:
    """A display for that many steps."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
    except ImportError:
        yield Lines(steps)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(steps)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=steps, completed=-1)

        class Bar:
            def begin(self, what: str) -> None:
                bars.update(task, advance=1, description=what)

            def say(self, line: str) -> None:
                console.print(line, markup=False, highlight=False)

        yield Bar()
