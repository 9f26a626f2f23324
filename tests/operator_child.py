"""A process that has a store open and listens to its operator, as `imserver serve` does.

    operator_child.py DIRECTORY

"ready" on stdout when it listens; ends when stdin does. Two followers are made up: ann's phone
has been sent everything and acknowledged nothing, and eve reads without acknowledgements.
"""

import asyncio
import sys
from pathlib import Path

from imserver.control import ControlServer
from imserver.delivery_follower import FollowerState
from imserver.operations import Operations
from imserver.timeline_sqlite import SqliteTimeline


async def main(directory: Path) -> None:
    store = await SqliteTimeline.open(directory)

    async def redrive(ids: list[int]) -> int:
        print("redrive", *ids, flush=True)
        return len(await store.take_dead(ids))

    def followers(topic: str) -> list[FollowerState]:
        head = {"room:a": 5}.get(topic, 0)
        return [
            FollowerState(1, 1, "ann", "phone", True, 2, head, 3, 4.4, (), 0, 0, None),
            FollowerState(2, 2, "eve", "tab", False, 0, head, 0, None, (), 0, 0, None),
        ]

    operations = Operations(store, redrive=redrive, followers=followers)
    control = ControlServer(directory, operations.methods)
    await control.start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await control.close()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
