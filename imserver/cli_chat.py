"""`imserver chat`, `publish` and `tail`: the client, for people in a terminal and for scripts.

Not here: connections and their repair (client), lines and terminals (cli_terminal).
"""

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import click

from imserver.cli_terminal import notice, read_lines, say
from imserver.client import Client, Subscription
from imserver.errors import Closed, ErrorCode, ImError
from imserver.model import CODECS, Message

#: How long a server is tried for that does not answer: it may be starting in another window.
CONNECT_S = 3.0

#: The device of `tail --durable`: one that comes back to its place.
DEVICE = "cli"

_CODEC_NAMES = {number: name for name, number in CODECS.items()}


@asynccontextmanager
async def connected(
    server: str,
    login: Mapping[str, str],
    errors: list[ImError] | None = None,
    device: str = "",
) -> AsyncIterator[Client]:
    """A client of that server. Refused publishes go to `errors`, or to stderr."""
    seen = False

    def on_connect(_: object) -> None:
        nonlocal seen
        if seen:
            notice("connected again")
        seen = True

    def on_error(error: ImError) -> None:
        if errors is None:
            notice(f"not delivered: {error}")
        else:
            errors.append(error)

    try:
        client = Client(
            server,
            user=login.get("user"),
            token=login.get("token"),
            device=device_of(login.get("token", ""), device),
            name="imserver-cli",
            connect_timeout_s=CONNECT_S,
            on_connect=on_connect,
            on_disconnect=lambda closed: notice(f"connection lost: {closed}"),
            on_error=on_error,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        await client.start()
    except (OSError, Closed) as error:
        if isinstance(error, Closed) and error.code:
            raise
        text = f"no server at {server}: {error}. Start one: imserver serve --dev"
        raise click.ClickException(text) from None
    try:
        yield client
    finally:
        client.on_disconnect = None
        await client.close()


def device_of(token: str, device: str = "") -> str:
    """The device that the token is bound to. Else `device`, or one of our own: under a shared
    name, each command would end the one in the next window."""
    with suppress(AttributeError):
        bound = claims_of(token).get("im", {}).get("device")
        if isinstance(bound, str):
            return bound
    return device or f"terminal-{os.getpid()}"


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, unverified, which is good enough to fit in with it; {} for no token."""
    with suppress(ValueError):
        payload = token.split(".")[1] if token.count(".") == 2 else "e30"
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if isinstance(claims, dict):
            return claims
    return {}


async def chat(server: str, login: Mapping[str, str], room: str) -> None:
    """Lines of stdin become messages of the room, messages of others become lines."""
    topic = room if room.startswith("room:") else f"room:{room}"
    async with connected(server, login) as client:
        subscription = await client.subscribe(topic)
        assert client.welcome
        if sys.stdin.isatty():
            notice(f"you are {client.welcome.user} in {topic}; type a line, Ctrl-D leaves")
        tasks = [
            asyncio.create_task(_listen(subscription)),
            asyncio.create_task(_speak(client, topic)),
        ]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        for task in done:
            task.result()


async def _listen(subscription: Subscription) -> None:
    async for message in subscription:
        say(f"{message.sender}: {_text(message)}")


async def _speak(client: Client, topic: str) -> None:
    lines = read_lines(sys.stdin.fileno())
    while (line := await lines.get()) is not None:
        if line:
            try:
                await client.publish(topic, line, no_echo=True)
            except Closed:
                raise
            except ImError as error:
                notice(f"not sent: {error}")
    with suppress(ImError):  # leaving: whoever has not answered by now is not waited for
        await _heard(client)


async def publish(
    server: str, login: Mapping[str, str], topic: str, text: str, tag: str, is_durable: bool
) -> None:
    """One message; to be kept, its place is printed. A refusal is a failure; one by a hook that
    takes its time may come too late to be seen."""
    errors: list[ImError] = []
    async with connected(server, login, errors) as client:
        if is_durable:
            kept = await client.publish(topic, text, tag=tag, durable=True, retry_s=CONNECT_S)
            receipt = await kept
            say(f"kept in {topic} as {receipt.seq}")
            return
        await client.publish(topic, text, tag=tag)
        await _heard(client)
        await asyncio.sleep(0)  # errors are handed over by the loop
    if errors:
        raise errors[0]


async def _heard(client: Client) -> None:
    """Returns when the server has taken everything sent before: it answers in order. Raises
    when it did not answer, and what was sent may be lost."""
    try:
        await client.call("presence", {"users": []}, timeout_s=CONNECT_S)
    except ImError as error:
        if isinstance(error, Closed) or error.code == ErrorCode.TIMEOUT:
            raise


async def tail(
    server: str,
    login: Mapping[str, str],
    topic: str,
    tags: str,
    count: int | None,
    is_json: bool,
    is_durable: bool,
    after: int | None,
) -> None:
    """The messages of a topic, one a line, until `count` of them have been printed. With
    `is_durable` what was printed is acknowledged, and the next time does not come again."""
    async with connected(server, login, device=DEVICE if is_durable else "") as client:
        left = count
        messages = await client.subscribe(topic, tags, durable=is_durable, after=after)
        async for message in messages:
            say(as_json(message) if is_json else as_text(message))
            if is_durable:
                messages.ack(message)
            if left is not None:
                left -= 1
                if left == 0:
                    return


def as_text(message: Message) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(message.time_ms / 1000))
    tag = f" [{message.tag}]" if message.tag else ""
    return f"{when}{tag} {message.sender}: {_text(message)}"


def as_json(message: Message) -> str:
    """Its fields; `body` is the decoded value, or base64 text of bytes that are no text."""
    fields = {
        "topic": message.topic,
        "tag": message.tag,
        "sender": message.sender,
        "id": message.id,
        "seq": message.seq,
        "time_ms": message.time_ms,
        "codec": _CODEC_NAMES.get(message.codec, str(message.codec)),
        "body": _value(message),
    }
    return json.dumps(fields, default=str)


def _value(message: Message) -> object:
    try:
        value = message.value()
    except (ValueError, ImportError):
        value = message.body
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _text(message: Message) -> str:
    value = _value(message)
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = value["text"]
    return value if isinstance(value, str) else json.dumps(value, default=str)
