"""The way into a running server for its operator: a Unix socket in the data directory.

One JSON object a line in both directions, answered in order:

    {"method": "dlq.list", "params": {"topic": "room:a"}}
    {"result": {...}}   or   {"error": {"code": 404, "message": "..."}}

Only the owner of the server can open the socket (0600), so there is no login. An operator is no
crowd: few connections, one request at a time on each, every line bounded and every wait too.

Not here: what can be asked (operations), and what is printed of it (cli).
"""

import asyncio
import inspect
import logging
import os
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from imserver.errors import ErrorCode, ImError

SOCKET: Final = "control.sock"
#: Bytes of a request; of an answer, which has pages of messages in it.
REQUEST_MAX: Final = 65_536
ANSWER_MAX: Final = 16_777_216
CONNECTIONS_MAX: Final = 8
#: How long a connection may say nothing, one too many may take for its request, one method may
#: take, an answer may wait to be read.
IDLE_S: Final = 30.0
REFUSE_S: Final = 1.0
METHOD_S: Final = 30.0
WRITE_S: Final = 10.0

Method = Callable[..., Awaitable[Any]]
Methods = Mapping[str, Method]
#: method, params -> result, wherever it is answered. ImError for a refusal.
Ask = Callable[..., Awaitable[Any]]

_log = logging.getLogger("imserver.control")


class NoControl(Exception):
    """Nobody answers on the socket of this directory."""


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    params: dict[str, Any] = {}


async def answer(methods: Methods, method: str, params: Mapping[str, Any]) -> Any:
    """Call a method by name, with parameters as its signature says: ImError 404 or 422
    otherwise. What calls it may come from another process or from this one."""
    function = methods.get(method)
    if function is None:
        raise ImError(ErrorCode.NOT_FOUND, f"no method {method}; there are {', '.join(methods)}")
    signature = inspect.signature(function)
    try:
        given = signature.bind(**params).arguments
        for name, value in given.items():
            given[name] = msgspec.convert(value, signature.parameters[name].annotation)
    except (TypeError, msgspec.ValidationError) as error:
        raise ImError(ErrorCode.BAD_BODY, f"{method}: {error}") from None
    return await function(**given)


class ControlServer:
    """Answers on the socket of a directory, whose lock its process holds: what is there already
    was left behind by one that has ended."""

    def __init__(self, directory: Path, methods: Methods, *, method_s: float = METHOD_S) -> None:
        self._directory = directory
        self._methods = methods
        self._method_s = method_s
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._served = 0

    async def start(self) -> None:
        """OSError when the socket cannot be made."""
        (self._directory / SOCKET).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listener.fileno(), 0o600)  # what bind() gives to the file: never open
            with _short(self._directory) as path:
                listener.bind(path)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(
                self._on_connection, sock=listener, limit=REQUEST_MAX
            )
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """End all connections, also those that wait for an answer. Twice is once."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        (self._directory / SOCKET).unlink(missing_ok=True)

    async def _on_connection(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        writer.transport.set_write_buffer_limits(0)  # drain() is for all of it
        try:
            if self._served >= CONNECTIONS_MAX:
                await self._refuse(reader, writer)
            else:
                self._served += 1
                try:
                    await self._serve(reader, writer)
                finally:
                    self._served -= 1
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # it has gone, says or reads nothing, or the server ends
        finally:
            self._tasks.discard(task)
            writer.transport.abort()  # what was answered has been written by now

    async def _refuse(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Tell one too many so, when it has asked: whoever is cut off while it writes reads
        nothing any more."""
        async with asyncio.timeout(REFUSE_S):
            with suppress(ValueError):  # longer than a request may be
                await reader.readline()
        text = f"{CONNECTIONS_MAX} operators are connected; wait until one has ended"
        await _write(writer, _refusal(ImError(ErrorCode.OVERLOADED, text)))

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    line = await reader.readline()
            except ValueError:
                text = f"a request is at most {REQUEST_MAX} bytes long"
                await _write(writer, _refusal(ImError(ErrorCode.TOO_LARGE, text)))
                return
            if not line.endswith(b"\n"):
                return
            await _write(writer, await self._answer(line))

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = msgspec.json.decode(line, type=_Request)
            async with asyncio.timeout(self._method_s):
                result = await answer(self._methods, request.method, request.params)
            told = msgspec.json.encode({"result": result})
            if len(told) >= ANSWER_MAX:
                raise ImError(ErrorCode.TOO_LARGE, f"the answer has {len(told)} bytes")
        except ImError as error:
            return _refusal(error)
        except msgspec.MsgspecError as error:
            return _refusal(ImError(ErrorCode.BAD_BODY, str(error)))
        except TimeoutError:
            return _refusal(ImError(ErrorCode.TIMEOUT))
        except Exception:
            _log.exception("a request of the operator failed")
            return _refusal(ImError(ErrorCode.INTERNAL))
        return told + b"\n"


@asynccontextmanager
async def connect(directory: Path, *, timeout_s: float = METHOD_S + WRITE_S) -> AsyncIterator[Ask]:
    """ask(method, **params) of the server that runs on a directory: what `answer` returns or
    raises there. NoControl when it does not answer."""
    try:
        with _short(directory) as path:
            reader, writer = await asyncio.open_unix_connection(path, limit=ANSWER_MAX)
    except OSError as error:
        raise NoControl(f"{directory / SOCKET}: {error.strerror or error}") from error

    async def ask(method: str, **params: Any) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                request = {"method": method, "params": params}
                writer.write(msgspec.json.encode(request) + b"\n")
                await writer.drain()
                line = await reader.readline()
        except TimeoutError:
            raise NoControl(f"{directory / SOCKET}: no answer in {timeout_s:.0f} s") from None
        except (OSError, ValueError) as error:
            raise NoControl(f"{directory / SOCKET}: {error}") from error
        if not line.endswith(b"\n"):
            raise NoControl(f"{directory / SOCKET}: the server has ended")
        told = msgspec.json.decode(line)
        if "error" in told:
            raise ImError(told["error"]["code"], told["error"]["message"])
        return told["result"]

    try:
        yield ask
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _write(writer: StreamWriter, line: bytes) -> None:
    writer.write(line)
    async with asyncio.timeout(WRITE_S):
        await writer.drain()


def _refusal(error: ImError) -> bytes:
    told = {"error": {"code": error.code, "message": error.message}}
    return msgspec.json.encode(told) + b"\n"


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A path of the socket that fits its address, which has 107 bytes, wherever it is."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)
