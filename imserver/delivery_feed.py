"""Pages of the timeline for a subscription that is behind.

The core asks when there is room (WANT), and gets what follows `sent`: at most as many messages
as it has room for, flagged HISTORY, without those that are set aside. What cannot be read any
more is reported, and covered by an answer of its own without messages: the core counts its
window in seqs, so a message behind a wide gap would never fit into it otherwise.
"""

from imserver.delivery_follower import Follower
from imserver.delivery_frames import as_history, split
from imserver.delivery_means import PAGE_BYTES, Means
from imserver.timeline import PAGE_FRAMES, Gap, Page


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
    gone = _first_gone(page, want.sent)
    frames, last = page.frames, page.last
    if gone or follower.asides:
        frames, last = _part(follower, page, want.sent, gone)
    means.counts["feeds"] += 1
    means.courier.feed(follower.conn, follower.number, as_history(frames), last, head)
    if gone and gone.last <= last:
        means.counts["gone"] += gone.last - gone.first + 1
        means.report(follower.conn, follower.topic, *gone)


def _first_gone(page: Page, sent: int) -> Gap | None:
    if page.first > sent + 1:
        return Gap(sent + 1, page.first - 1, "expired")
    return page.gaps[0] if page.gaps else None


def _part(follower: Follower, page: Page, sent: int, gone: Gap | None) -> tuple[bytes, int]:
    """What can be sent in one answer, and how far that goes."""
    if gone and gone.first == sent + 1:
        return b"", gone.last
    last = gone.first - 1 if gone else page.last
    found = [
        (seq, frame)
        for seq, frame in split(page.frames)
        if seq <= last and seq not in follower.asides
    ]
    if found and found[0][0] > sent + 1:
        return b"", found[0][0] - 1
    return b"".join(frame for _, frame in found), last
