"""Who answers an operator: the server that has the store open, or else we ourselves.

A server holds the lock of its directory and listens on its control socket. Where nobody holds
the lock we do, for as long as the command takes, and call the same operations.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import click

from imserver.control import Ask, NoControl, answer, connect
from imserver.errors import ImError
from imserver.operations import Operations
from imserver.timeline import StoreError, StoreInUse
from imserver.timeline_sqlite import SqliteTimeline


def run(directory: Path, work: Callable[[Ask], Coroutine[Any, Any, None]]) -> None:
    """Do something with whoever answers for a directory. A refusal is a message and exit code
    1."""

    async def ask_them() -> None:
        async with asking(directory) as ask:
            await work(ask)

    with refusals():
        asyncio.run(ask_them())


@contextmanager
def refusals() -> Iterator[None]:
    try:
        yield
    except ImError as error:
        raise click.ClickException(error.message) from None
    except (StoreError, NoControl) as error:
        raise click.ClickException(str(error)) from None


@asynccontextmanager
async def asking(directory: Path) -> AsyncIterator[Ask]:
    """ask(method, **params): see `operations`."""
    try:
        store = await SqliteTimeline.open(directory, must_exist=True)
    except StoreInUse as in_use:
        try:
            async with connect(directory) as ask:
                yield ask
        except NoControl as error:
            raise NoControl(f"{in_use}. It does not answer: {error}") from None
        return
    methods = Operations(store).methods

    async def ask_ourselves(method: str, **params: Any) -> Any:
        return await answer(methods, method, params)

    try:
        yield ask_ourselves
    finally:
        await store.close()
