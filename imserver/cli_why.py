"""What became of one message, for whoever was asked at night why it did not arrive."""

import json
import re
from pathlib import Path
from typing import Any, Final

import click

from imserver.cli_ask import run
from imserver.cli_terminal import notice, say, table, when
from imserver.control import Ask

#: What is known of a message that a cursor is past, and no more.
PASSED: Final = (
    "passed: the cursor is past it, and nothing tells why: it was acknowledged, or not for the"
    " tags asked for, or a dead letter that is deleted, or from before the device began"
)


def why(directory: Path, topic: str, message: str, user: str, as_json: bool) -> int:
    """Print it; the exit code, 1 for a message that was not accepted or is not found."""
    was_accepted = False

    async def work(ask: Ask) -> None:
        nonlocal was_accepted
        seq = await _seq(ask, topic, message)
        if not seq:
            return
        told = await ask("why", topic=topic, seq=seq, user=user)
        was_accepted = told["state"] != "not accepted"
        devices, after = told["devices"], told["after"]
        while after is not None:
            page = await ask("why", topic=topic, seq=seq, user=user, after=after)
            devices, after = devices + page["devices"], page["after"]
        told["devices"] = devices
        if as_json:
            say(json.dumps(told))
        else:
            _print(told)

    run(directory, work)
    return 0 if was_accepted else 1


async def _seq(ask: Ask, topic: str, message: str) -> int:
    """The place in the topic; 0 when it is not found, and then that was said."""
    if re.fullmatch(r"[1-9][0-9]{0,17}", message):
        return int(message)
    sender, _, id = message.rpartition("/")
    if not sender or not re.fullmatch(r"[0-9]{1,20}", id):
        raise click.UsageError("the message is a seq, or SENDER/ID")
    found = await ask("find", topic=topic, sender=sender, id=int(id))
    seq: int = found["seq"]
    if not seq:
        notice(
            f"{topic} has no message {id} of {sender} from {found['oldest']} to"
            f" {found['head']}: it was not accepted, or it is older"
        )
    return seq


def _print(told: dict[str, Any]) -> None:
    topic, seq, message = told["topic"], told["seq"], told["message"]
    if told["state"] == "not accepted":
        say(f"{topic} {seq} was not accepted: the last is {told['head']}")
        return
    if message:
        sender = f"{message['sender']}/{message['id']}"
        say(f"{topic} {seq} of {sender} was committed at {when(message['time_ms'])}")
    elif told["state"] == "forgotten":
        say(f"{topic} {seq} was committed and is gone by retention: {told['first']} is the first")
    else:
        say(f"{topic} {seq} was committed and cannot be read: `imserver store check` knows more")
    if told["devices"]:
        table([_row(device) for device in told["devices"]])
        if any(device["state"] == "passed" for device in told["devices"]):
            notice(PASSED)
    else:
        notice("no device reads this topic with a cursor")
    for user in told["absent"]:
        say(f"{user} has no device that has ever subscribed")


def _row(device: dict[str, Any]) -> dict[str, Any]:
    cursor = device["cursor"]
    return {
        "device": f"{device['user']}/{device['device']}",
        "online": "yes" if device["is_online"] else "no",
        "cursor": "-" if cursor is None else cursor,
        "state": _state(device),
    }


def _state(device: dict[str, Any]) -> str:
    state, attempts, due_in_s = device["state"], device["attempts"], device["due_in_s"]
    if state == "dead letter":
        why = f"{device['reason']}, after {attempts} attempts"
        return f"dead letter {device['letter']}: {why}"
    if state == "set aside":
        return f"set aside as {device['letter']}: {device['reason']}, {attempts} attempts so far"
    if state == "sent":
        times = f", {attempts} times" if attempts else ""
        again = "" if due_in_s is None else f", again in {max(0.0, due_in_s):.0f} s"
        return f"sent{times}, not acknowledged{again}"
    if state == "waiting":
        return "not sent yet" if device["is_online"] else "waits for the device"
    return str(state)
