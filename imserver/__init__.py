"""imserver: an instant-messaging server, to run or to embed.

The names here are the public ones. They are loaded when they are first used: a program that
only needs the client does not load the server.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imserver.config import Config
    from imserver.errors import ImError
    from imserver.server import Server
    from imserver.websocket import WebSocket

    __version__: str

__all__ = ["Config", "ImError", "Server", "WebSocket", "__version__"]

_HOMES = {
    "Config": "config",
    "ImError": "errors",
    "Server": "server",
    "WebSocket": "websocket",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"imserver.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'imserver' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("imserver")
    except PackageNotFoundError:
        return "0+unknown"  # run from a source tree that was never installed
