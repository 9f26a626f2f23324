"""The command line without a server: options, exit codes, what is printed. The commands with one
are in test_processes."""

import asyncio
import json
import logging
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from harness import Run

from imserver import __version__, cli_chat, cli_doctor, cli_serve
from imserver.auth import Authenticator, issue
from imserver.cli import main
from imserver.cli_terminal import LINE_LEN_MAX, printable, read_lines
from imserver.config import Auth, Config, Key, Log
from imserver.config_sources import load
from imserver.model import CODEC_BYTES, CODEC_JSON, Message

ROOT = Path(__file__).parent.parent
SECRET = "s" * 48
KEYS = {
    "IMSERVER_AUTH__KEYS__0__ALGORITHM": "HS256",
    "IMSERVER_AUTH__KEYS__0__SECRET": SECRET,
}


def token_in(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    auth = Auth(keys=(Key(algorithm="HS256", secret=SECRET),))
    return Authenticator(auth).identify(result.stdout.strip())


def test_the_version_is_shown(run: Run) -> None:
    assert run("--version").output == f"imserver, version {__version__}\n"


def test_every_command_is_documented(run: Run) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    for name, command in main.commands.items():
        assert f"`imserver {name}" in text
        assert command.help
        assert run(name, "--help").exit_code == 0
    assert sorted(main.commands) == sorted(
        [
            "bench",
            "chat",
            "config",
            "dlq",
            "doctor",
            "publish",
            "serve",
            "store",
            "tail",
            "token",
            "topic",
            "why",
        ]
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["serve", "--nothing"],
        ["token"],
        ["token", "ann", "--ttl", "long"],
        ["token", "ann", "--private-key", "/nowhere"],
        ["chat"],
        ["chat", "lobby"],
        ["chat", "lobby", "--user", "ann", "--token", "x"],
        ["chat", "lobby", "--user", "ann", "--server", "a:b"],
        ["chat", "lobby", "--user", "ann", "--server", "localhost:99999"],
        ["publish", "room:lobby", "--user", "ann"],
        ["tail", "room:lobby", "--user", "ann", "--count", "0"],
        ["config", "nothing"],
    ],
)
def test_wrong_use_is_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Usage: imserver" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve"], "without a key every login is refused"),
        (["serve", "--dev", "--listen", "0.0.0.0:7400"], "dev listens on loopback only"),
        (["serve", "--dev", "--http", "example.com:80"], "dev listens on loopback only"),
        (["serve", "--dev", "--threads", "many"], "threads (from the command line)"),
        (["serve", "--dev", "--threads", "17"], "<= 16"),
        (["serve", "--dev", "--listen", "7400"], "host:port"),
        (["serve", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (["config", "check"], "without a key"),
        (["config", "check", "--dev", "--listen", "[::]:1"], "loopback"),
        (["config", "show", "--threads", "x"], "threads"),
        (["token", "ann"], "no key to sign with; make a secret"),
        (["token", "ann", "--config", "/nowhere.toml"], "cannot be read"),
    ],
)
def test_a_bad_configuration_is_78(run: Run, arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 78, result.output
    assert result.stderr.startswith("bad configuration: ")
    assert said in result.stderr
    assert result.stdout == ""


def test_more_connections_than_descriptors_are_refused(run: Run) -> None:
    env = {"IMSERVER_LIMITS__MAX_CONNECTIONS": "16000000"}
    result = run("serve", "--dev", env=env)
    assert result.exit_code == 78
    assert "limits.max_connections" in result.stderr
    assert "open files" in result.stderr


def test_a_key_that_does_not_fit_is_refused_before_anything_starts(run: Run) -> None:
    env = {
        "IMSERVER_AUTH__KEYS__0__ALGORITHM": "RS256",
        "IMSERVER_AUTH__KEYS__0__PUBLIC_KEY": "no key",
    }
    for command in (["serve"], ["config", "check"]):
        result = run(*command, env=env)
        assert result.exit_code == 78
        assert "not a public key in PEM" in result.stderr


# token


def test_a_token_says_what_was_asked_for(run: Run) -> None:
    arguments = "token ann --publish room:* --publish group:a --subscribe room:* --device d"
    identity = token_in(run(*arguments.split(), env=KEYS))
    assert (identity.user, identity.device) == ("ann", "d")
    assert identity.rights.publish == ("room:*", "group:a")
    assert identity.rights.subscribe == ("room:*",)


def test_the_configuration_may_be_named_by_the_environment(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    path = tmp_path / "im.toml"
    path.write_text(f'[[auth.keys]]\nalgorithm = "HS256"\nsecret_file = "{tmp_path}/secret"\n')
    assert token_in(run("token", "ann", env={"IMSERVER_CONFIG": str(path)})).user == "ann"
    assert token_in(run("token", "ann", "-c", str(path))).user == "ann"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["a b"], 1),
        (["ann", "--ttl", "0"], 1),
        (["ann", "--ttl", "86401"], 1),
        (["ann", "--publish", "a*b"], 1),
        (["ann", "--kid", "other"], 78),
    ],
)
def test_no_token_is_made_that_a_server_refuses(run: Run, arguments: list[str], code: int) -> None:
    result = run("token", *arguments, env=KEYS)
    assert result.exit_code == code
    assert result.stdout == ""


def test_a_private_key_signs_where_only_the_public_one_is_known(run: Run, tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "private").write_bytes(private)
    (tmp_path / "public").write_bytes(public)
    env = {
        "IMSERVER_AUTH__KEYS__0__ALGORITHM": "EdDSA",
        "IMSERVER_AUTH__KEYS__0__PUBLIC_KEY_FILE": str(tmp_path / "public"),
    }
    result = run("token", "ann", "--private-key", str(tmp_path / "private"), env=env)
    assert Authenticator(load(environ=env).auth).identify(result.stdout.strip()).user == "ann"
    assert "private key is needed" in run("token", "ann", env=env).stderr


# config


def test_a_good_configuration_is_good(run: Run) -> None:
    assert run("config", "check", env=KEYS).output == "the configuration is good\n"
    assert run("config", "check", "--dev").exit_code == 0


def test_what_is_in_force_is_shown_without_secrets(run: Run, tmp_path: Path) -> None:
    result = run("config", "show", "--threads", "2", "--data", "/x", env=KEYS)
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert 'secret = "***"' in result.output
    path = tmp_path / "shown.toml"
    path.write_text(result.output.replace("***", SECRET))
    assert load(path) == load(
        environ=KEYS, overrides={"threads": 2, "data_dir": "/x", "http": "127.0.0.1:7480"}
    )


# doctor


def lines_of(result: Result) -> dict[str, str]:
    """What doctor found, by subject: the verdict and the text."""
    findings = [line.split(maxsplit=1) for line in result.output.splitlines()[1:-1]]
    return {text.split("  ")[0]: f"{verdict} {text}" for verdict, text in findings}


def test_doctor_finds_this_machine_good_enough(run: Run) -> None:
    result = run("doctor", "--dev", "--listen", "127.0.0.1:0")
    assert result.exit_code == 0, result.output
    assert result.output.endswith("serving can work\n")
    found = lines_of(result)
    assert found["core"].startswith("ok")
    assert found["open files"].startswith("ok")
    for subject in ("uvloop", "protobuf", "redis", "confluent_kafka", "kernel", "backlog"):
        assert subject in found
    assert "1 loaded" in run("doctor", "--dev", env=KEYS).output
    assert "whoever connects is believed" in run("doctor", "--dev").output


def test_doctor_says_what_keeps_serving_from_working(run: Run) -> None:
    for env, said in (
        ({"IMSERVER_THREADS": "99"}, "serving cannot work: configuration"),
        ({"IMSERVER_LIMITS__MAX_CONNECTIONS": "16000000"}, "open files"),
        (KEYS | {"IMSERVER_AUTH__KEYS__0__ALGORITHM": "RS256"}, "configuration"),
    ):
        result = run("doctor", "--dev", env=env)
        assert result.exit_code == 1, result.output
        assert said in result.output.splitlines()[-1]


def test_doctor_says_when_the_core_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imserver._core", None)
    result = run("doctor", "--dev")
    assert result.exit_code == 1
    assert "make build" in lines_of(result)["core"]


def test_doctor_says_when_a_package_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    result = run("doctor", "--dev")
    assert result.exit_code == 0
    assert lines_of(result)["uvloop"].startswith("note uvloop")


def test_doctor_sees_that_the_address_is_taken(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("doctor", "--dev", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert result.exit_code == 0
    assert "in use" in lines_of(result)["address"]


def test_a_finding_is_bad_only_when_serving_cannot_work() -> None:
    good = cli_doctor.Finding(cli_doctor.Verdict.GOOD, "a", "x")
    note = cli_doctor.Finding(cli_doctor.Verdict.NOTE, "b", "x")
    bad = cli_doctor.Finding(cli_doctor.Verdict.BAD, "c", "x")
    assert cli_doctor.report([good, note], "1") == 0
    assert cli_doctor.report([good, bad, note], "1") == 1


# serve


def test_the_greeting_of_a_dev_server_warns_and_tells_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/nowhere/imserver"])
    text = cli_serve.greeting(Config(dev=True), "127.0.0.1:7400", "1.0")
    assert "INSECURE" in text
    assert "imserver chat lobby --user ann\n" in text
    assert "imserver chat lobby --user bob\n" in text
    assert "http" not in text
    browsing = cli_serve.greeting(Config(dev=True), "127.0.0.1:7400", "1.0", "", "127.0.0.1:80")
    assert "    http://127.0.0.1:80/chat\n" in browsing
    assert "http://127.0.0.1:80/\n" in browsing
    elsewhere = cli_serve.greeting(Config(dev=True), "127.0.0.1:9", "1.0")
    assert "--user bob --server 127.0.0.1:9\n" in elsewhere


def test_the_greeting_of_a_server_with_keys_tells_how_to_make_a_token() -> None:
    config = Config(auth=Auth(keys=(Key(algorithm="HS256", secret=SECRET),)))
    text = cli_serve.greeting(config, "127.0.0.1:7400", "1.0", " --config im.toml")
    assert "token ann --publish 'room:*' --subscribe 'room:*' --config im.toml)" in text
    assert "INSECURE" not in text
    assert "TLS" not in text
    public = Config(listen="0.0.0.0:7400", auth=config.auth)
    assert "no TLS" in cli_serve.greeting(public, "0.0.0.0:7400", "1.0")


@pytest.mark.parametrize("is_abstract", [True, False])
def test_systemd_is_told(
    is_abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"@imserver-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path.replace("@", "\0", 1))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        cli_serve.notify_systemd("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_without_systemd_nobody_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    cli_serve.notify_systemd("READY=1")
    assert caplog.text == ""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/socket")
    cli_serve.notify_systemd("READY=1")
    assert "cannot notify systemd" in caplog.text


def test_the_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, soft), hard))
        cli_serve.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, cli_serve.FILES_MAX)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def record(message: str, *values: object, error: Any = None) -> logging.LogRecord:
    return logging.LogRecord("imserver.x", logging.INFO, "", 0, message, values, error)


def test_no_name_can_break_a_line_of_the_log() -> None:
    text = cli_serve.TextLines().format(record("hello %s", "a\nb\x1b[2J"))
    assert text.endswith(r"imserver.x: hello a\nb\x1b[2J")
    line = json.loads(cli_serve.JsonLines().format(record("hello %s", "a\nb")))
    assert line["message"] == "hello a\nb"
    assert (line["level"], line["logger"]) == ("info", "imserver.x")
    assert line["time"].endswith("Z")
    try:
        raise ValueError("x")
    except ValueError:
        error = sys.exc_info()
    line = json.loads(cli_serve.JsonLines().format(record("failed", error=error)))
    assert "ValueError: x" in line["exception"]
    assert "ValueError: x" in cli_serve.TextLines().format(record("failed", error=error))


def test_logging_is_configured_for_the_command() -> None:
    root, ours = logging.getLogger(), logging.getLogger("imserver")
    before = root.handlers[:], root.level, ours.level
    try:
        cli_serve.configure_logging(Log(level="debug", format="json"))
        assert ours.level == logging.DEBUG
        assert isinstance(root.handlers[0].formatter, cli_serve.JsonLines)
    finally:
        root.handlers[:], root.level = before[0], before[1]
        ours.setLevel(before[2])


# chat, publish, tail


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("grüß dich 👋", "grüß dich 👋"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\rb\nc\td", r"a\rb\nc\td"),
        ("\u202eevil\u2028\x9b", r"\u202eevil\u2028\x9b"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_others_wrote_cannot_command_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("how", ["pipe", "file"])
async def test_lines_come_from_pipes_and_files(how: str, tmp_path: Path) -> None:
    long = b"x" * (LINE_LEN_MAX + 10)
    data = "a\n\ngrüß\r\n".encode() + b"\xff\n" + long + b"\nlast"
    if how == "file":
        (tmp_path / "lines").write_bytes(data)
        reading = os.open(tmp_path / "lines", os.O_RDONLY)
    else:
        reading, writing = os.pipe()
        asyncio.get_running_loop().run_in_executor(None, write_all, writing, data)
    lines = read_lines(reading)
    found = []
    while (line := await lines.get()) is not None:
        found.append(line)
    os.close(reading)
    assert found[:4] == ["a", "", "grüß", "\ufffd"]
    assert found[-1] == "last"
    assert "".join(found[4:-1]) == long.decode()
    assert max(map(len, found)) <= 2 * LINE_LEN_MAX


def write_all(fd: int, data: bytes) -> None:
    for at in range(0, len(data), 7_000):
        os.write(fd, data[at : at + 7_000])
    os.close(fd)


async def test_many_lines_keep_their_order() -> None:
    reading, writing = os.pipe()
    data = b"".join(b"%d\n" % number for number in range(1_000))
    asyncio.get_running_loop().run_in_executor(None, write_all, writing, data)
    lines = read_lines(reading)
    assert [await lines.get() for _ in range(1_001)] == [*map(str, range(1_000)), None]
    os.close(reading)


@pytest.mark.parametrize(
    ("body", "codec", "text"),
    [
        (b'"hi"', CODEC_JSON, "hi"),
        (b'{"text": "hi", "x": 1}', CODEC_JSON, "hi"),
        (b'{"x": 1}', CODEC_JSON, '{"x": 1}'),
        (b"[1, null]", CODEC_JSON, "[1, null]"),
        (b"not json", CODEC_JSON, "not json"),
        (b"hi", CODEC_BYTES, "hi"),
        (b"\xff", CODEC_BYTES, "\\xff"),
    ],
)
def test_a_message_is_shown_as_text(body: bytes, codec: int, text: str) -> None:
    message = Message("room:a", "t", "ann", body, codec, id=1, time_ms=1_700_000_000_000)
    shown = cli_chat.as_text(message)
    assert shown.endswith(f" [t] ann: {text}")
    fields = json.loads(cli_chat.as_json(message))
    assert (fields["topic"], fields["sender"], fields["tag"]) == ("room:a", "ann", "t")
    assert fields["codec"] == ("json" if codec == CODEC_JSON else "bytes")


def test_a_command_takes_the_device_of_its_token() -> None:
    auth = Auth(keys=(Key(algorithm="HS256", secret=SECRET),))
    own = f"terminal-{os.getpid()}"
    assert cli_chat.device_of(issue(auth, "ann", device="phone")) == "phone"
    for token in (issue(auth, "ann"), "", "x", "a.b.c", "..", "a.WzFd.c", "é.é.é"):
        assert cli_chat.device_of(token) == own


def test_a_server_that_is_not_there_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_chat, "CONNECT_S", 0.2)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{nobody.getsockname()[1]}"
        for arguments in (
            ["publish", "room:a", "x", "--user", "ann"],
            ["tail", "room:a", "--user", "ann"],
            ["chat", "a", "--token", "x"],
        ):
            result = run(*arguments, env={"IMSERVER_SERVER": server})
            assert result.exit_code == 1
            assert result.stderr.startswith(f"Error: no server at {server}")
            assert len(result.stderr.splitlines()) == 1


def test_the_token_comes_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    logins = []

    async def publish(server: str, login: dict[str, str], *_: str) -> None:
        logins.append((server, login))

    monkeypatch.setattr(cli_chat, "publish", publish)
    env = {"IMSERVER_TOKEN": "t1"}
    assert run("publish", "a", "b", env=env).exit_code == 0
    assert run("publish", "a", "b", "--token", "t2", env=env).exit_code == 0
    assert run("publish", "a", "b", "--user", "ann", env=env).exit_code == 0
    found = [login for _, login in logins]
    assert found == [{"token": "t1"}, {"token": "t2"}, {"user": "ann"}]
    assert {server for server, _ in logins} == {"127.0.0.1:7400"}


def test_doctor_misses_a_key_as_serve_does(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 1
    assert "serve needs one" in result.output
