"""Pages of the timeline for a subscription that is behind.

The core asks when there is room (WANT), and gets what follows `sent`: at most as many messages
as it has room for, flagged HISTORY, without those that are set aside. What cannot be read any
more is reported, and covered by the page, so that the subscription goes on behind it.
"""

from imserver.delivery_follower import Follower
from imserver.delivery_frames import as_history, split
from imserver.delivery_means import PAGE_BYTES, Means
from imserver.timeline import PAGE_FRAMES, Page


async def feed(means: Means, follower: Follower) -> None:
    """Answer the WANT of a follower."""
    want = follower.want
    if want is None:
        return
    # Without a window there is always room.
    room = PAGE_FRAMES if not follower.is_acked else max(1, min(want.room, PAGE_FRAMES))
    page = await means.timeline.read(follower.topic, want.sent, room, PAGE_BYTES)
    head = page.last
    if page.messages or page.gaps:  # an empty page ends at the head
        head = max(head, (await means.timeline.extent(follower.topic)).head)
    if not follower.is_open:
        return
    follower.want = None
    frames = page.frames
    if follower.asides:
        frames = b"".join(one for seq, one in split(frames) if seq not in follower.asides)
    means.counts["feeds"] += 1
    means.courier.feed(follower.conn, follower.number, as_history(frames), page.last, head)
    _report(means, follower, want.sent, page)


def _report(means: Means, follower: Follower, sent: int, page: Page) -> None:
    gone = [(sent + 1, page.first - 1, "expired")] if page.first > sent + 1 else []
    for first, last, reason in [*gone, *page.gaps]:
        means.counts["gone"] += last - first + 1
        means.report(follower.conn, follower.topic, first, last, reason)
