"""`imserver serve` as a process of its own, on ports that stay the same when it is started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
START_S = 30.0


class Serving:
    """A server with `--dev`, unless it is given something else. `settings` are variables without
    their prefix: `LIMITS__MAX_FRAME_BYTES="4096"`."""

    def __init__(self, directory: Path, *, dev: bool = True, **settings: str) -> None:
        self.directory = directory
        self.address = ("127.0.0.1", free_port())
        self.url = f"http://127.0.0.1:{free_port()}"
        self._dev = dev
        self._settings = {f"IMSERVER_{name}": value for name, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        host, port = self.address
        options = ["--listen", f"{host}:{port}", "--http", self.url.removeprefix("http://")]
        options += ["--data", str(self.directory / "data")]
        command = [sys.executable, "-m", "imserver", "serve", *options]
        return [*command, "--dev"] if self._dev else command

    def start(self) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("IMSERVER_")}
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command, cwd=ROOT, env=inherited | self._settings, stdout=log, stderr=log
            )
        deadline_s = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"it did not start: {(self.directory / 'log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """As an operator does; what has a receipt is on the disk."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(START_S)
        finally:
            process.kill()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/client.json", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


Start = Callable[..., Serving]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
