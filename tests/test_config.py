"""Settings: every source, every bound, every refusal with the name of what is wrong."""

import json
import re
import resource
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest

from imserver.config import (
    DEFAULT_NAMESPACES,
    Auth,
    Config,
    ConfigError,
    Heartbeat,
    Key,
    Limits,
    Namespace,
    Reconnect,
    Section,
    Websocket,
    check_serve,
    default_connections,
    default_node,
    is_loopback,
    split_address,
)
from imserver.config_section import hints
from imserver.config_sources import load, to_toml, toml_value

ROOT = Path(__file__).parent.parent
SECRET = "s" * 48


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "imserver.toml"
    path.write_text(text)
    return path


def refused(**sources: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(sources.pop("path", None), **sources)
    return caught.value


def test_the_defaults_are_a_valid_configuration() -> None:
    config = Config()
    assert (config.listen, config.http) == ("127.0.0.1:7400", "")
    assert config.heartbeat == Heartbeat(interval_ms=30_000, timeout_ms=10_000, max_missed=3)
    assert config.namespaces == DEFAULT_NAMESPACES
    assert not config.dev
    assert load() == config


def test_the_last_source_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "threads = 2\n[limits]\ncalls = 10\nrights = 10\nsubscriptions = 10\n")
    environ = {"IMSERVER_LIMITS__RIGHTS": "20", "IMSERVER_LIMITS__SUBSCRIPTIONS": "20"}
    config = load(path, environ=environ, overrides={"limits.subscriptions": 30})
    limits = config.limits
    assert (limits.calls, limits.rights, limits.subscriptions) == (10, 20, 30)
    assert (config.threads, limits.max_frame_bytes) == (2, 65_536)


def test_the_environment_is_read_only_when_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSERVER_THREADS", "3")
    assert load().threads == 1


def test_text_becomes_what_the_setting_is() -> None:
    environ = {
        "IMSERVER_THREADS": "2",
        "IMSERVER_DEV": "true",
        "IMSERVER_RECONNECT__FACTOR": "1.5",
        "IMSERVER_NODE": "7",
    }
    config = load(environ=environ)
    assert (config.threads, config.dev, config.reconnect.factor) == (2, True, 1.5)
    assert config.node == "7"


def test_lists_are_given_by_index_or_as_json() -> None:
    environ = {
        "IMSERVER_AUTH__KEYS__0__KID": "a",
        "IMSERVER_AUTH__KEYS__0__ALGORITHM": "HS256",
        "IMSERVER_AUTH__KEYS__0__SECRET": SECRET,
        "IMSERVER_NAMESPACES": '[{"prefix": "room", "publish": "anyone"}]',
    }
    config = load(environ=environ)
    assert config.auth.keys == (Key(kid="a", algorithm="HS256", secret=SECRET),)
    assert config.namespaces == (Namespace(prefix="room", publish="anyone"),)


def test_more_than_ten_items_come_in_their_order() -> None:
    environ = {f"IMSERVER_NAMESPACES__{n}__PREFIX": f"n{n}" for n in range(12)}
    prefixes = [namespace.prefix for namespace in load(environ=environ).namespaces]
    assert prefixes == [f"n{n}" for n in range(12)]


def test_the_environment_changes_an_item_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[[auth.keys]]\nkid = "a"\nalgorithm = "HS256"\n')
    config = load(path, environ={"IMSERVER_AUTH__KEYS__0__SECRET": SECRET})
    assert config.auth.keys[0].kid == "a"


def test_a_value_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "issuer").write_text("https://issuer\n")
    (tmp_path / "secret").write_text(SECRET + "\n")
    environ = {
        "IMSERVER_AUTH__ISSUER_FILE": str(tmp_path / "issuer"),
        "IMSERVER_AUTH__KEYS__0__ALGORITHM": "HS256",
        "IMSERVER_AUTH__KEYS__0__SECRET_FILE": str(tmp_path / "secret"),
    }
    auth = load(environ=environ).auth
    assert auth.issuer == "https://issuer"
    assert auth.keys[0].material() == SECRET.encode()
    error = refused(environ={"IMSERVER_AUTH__ISSUER_FILE": str(tmp_path / "none")})
    assert "IMSERVER_AUTH__ISSUER_FILE" in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "IMSERVER_PORT",
        "IMSERVER_PORT_7400_TCP_ADDR",
        "IMSERVER_SERVICE_HOST",
        "IMSERVER_SERVICE_PORT_HTTP",
        "IMSERVER_TOKEN",
        "IMSERVER_CONFIG",
        "IMSERVER_SERVER",
        "OTHER_THREADS",
    ],
)
def test_variables_that_are_not_ours_are_left_alone(name: str) -> None:
    assert load(environ={name: "tcp://10.0.0.1:7400"}) == Config()


@pytest.mark.parametrize(
    ("name", "value", "key", "rule"),
    [
        ("IMSERVER_LIMITS__CALLS", "0", "limits.calls", ">= 1"),
        ("IMSERVER_LIMITS__CALLS", "many", "limits.calls", "expected int"),
        ("IMSERVER_LIMITS__CALS", "1", "limits.cals", "is it calls?"),
        ("IMSERVER_LIMITS", "1", "limits", "a section"),
        ("IMSERVER_NOTHING", "1", "nothing", "no such setting"),
        ("IMSERVER_LISTEN__HOST", "1", "listen", "expected str"),
        ("IMSERVER_LISTEN", "7400", "listen", "host:port"),
        ("IMSERVER_LISTEN", "127.0.0.1:70000", "listen", "65535"),
        ("IMSERVER_THREADS", "17", "threads", "<= 16"),
        ("IMSERVER_LIMITS__MAX_FRAME_BYTES", "63", "limits.max_frame_bytes", ">= 64"),
        ("IMSERVER_LIMITS__MAX_FRAME_BYTES", "16777216", "limits.max_frame_bytes", "<= 16777215"),
        ("IMSERVER_LIMITS__MAX_FRAME_BYTES", "2000000", "limits.max_frame_bytes", "outbox_hard"),
        ("IMSERVER_LIMITS__OUTBOX_SOFT_BYTES", "1000000", "limits.outbox_soft_bytes", "at most"),
        ("IMSERVER_RECONNECT__BASE_MS", "40000", "reconnect.base_ms", "reconnect.max_ms"),
        ("IMSERVER_RECONNECT__FACTOR", "0.5", "reconnect.factor", ">= 1.0"),
        ("IMSERVER_AUTH__LEEWAY_S", "31", "auth.leeway_s", "<= 30"),
        ("IMSERVER_AUTH__KEYS", "secret", "auth.keys", "JSON"),
        ("IMSERVER_AUTH__KEYS", "{}", "auth.keys", "a list"),
        ("IMSERVER_AUTH__KEYS__1__KID", "a", "IMSERVER_AUTH__KEYS__1__KID", "count from 0"),
        ("IMSERVER_NAMESPACES__0__PREFIX", "room:", "namespaces.0.prefix", "regex"),
        ("IMSERVER_NODE", "a b", "node", "regex"),
        ("IMSERVER_NODE", "a\n", "node", "regex"),
        ("IMSERVER_LOG__LEVEL", "loud", "log.level", "loud"),
        ("IMSERVER_HTTP", "0.0.0.0:80:80", "http", "host:port"),
    ],
)
def test_a_refusal_names_the_setting_the_rule_and_the_source(
    name: str, value: str, key: str, rule: str
) -> None:
    error = refused(environ={name: value})
    assert error.key == key
    assert rule in error.rule
    assert name in str(error)


def test_what_has_no_default_has_to_be_set() -> None:
    error = refused(environ={"IMSERVER_AUTH__KEYS__0__KID": "a"})
    assert (error.key, error.rule) == ("auth.keys.0.algorithm", "has no default: set it")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "threads = \n")
    assert str(path) in str(refused(path=path))
    assert "No such file" in str(refused(path=tmp_path / "none.toml"))
    path.write_bytes(b"\xff")
    assert "not TOML" in str(refused(path=path))
    path.write_text("[limits]\nwindows = 1\n")
    error = refused(path=path)
    assert (error.key, error.source) == ("limits.windows", str(path))
    path.write_text("limits = 3\n")
    assert refused(path=path, environ={"IMSERVER_LIMITS__CALLS": "1"})


def test_numbers_in_a_file_are_judged_by_type(tmp_path: Path) -> None:
    assert "expected int" in str(refused(path=write(tmp_path, "threads = true\n")))
    assert "expected bool" in str(refused(path=write(tmp_path, "dev = 1\n")))
    assert "expected str" in str(refused(path=write(tmp_path, "node = 1\n")))


def test_a_config_built_in_python_is_judged_as_well() -> None:
    with pytest.raises(ConfigError, match=r"limits\.calls: expected int >= 1"):
        Limits(calls=0)
    with pytest.raises(ConfigError, match="auth: expected"):
        Config(auth=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="auth: object contains unknown field"):
        Config(auth={"issue": "x"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dev listens on loopback only"):
        msgspec.structs.replace(Config(dev=True), listen="0.0.0.0:7400")
    with pytest.raises(AttributeError):
        Config().threads = 3  # type: ignore[misc]


def test_plain_values_become_what_the_settings_are() -> None:
    key = Key(algorithm="HS256", secret=SECRET)
    config = Config(auth={"keys": [key]}, reconnect=Reconnect(factor=2))  # type: ignore[arg-type]
    assert config.auth == Auth(keys=(key,))
    assert config.auth.keys[0] is key
    assert isinstance(config.reconnect.factor, float)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:7400", "localhost:1"])
def test_dev_listens_on_loopback(address: str) -> None:
    assert is_loopback(address)
    assert Config(dev=True, listen=address, http=address).dev


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "[::]:1", "192.168.0.1:1", "example.com:1", "localhost.evil.com:1"]
)
@pytest.mark.parametrize("name", ["listen", "http"])
def test_dev_is_refused_elsewhere(address: str, name: str) -> None:
    error = refused(overrides={"dev": True, name: address})
    assert error.key == "dev"
    assert address in error.rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":7400",
        "a",
        "a:",
        "a:b",
        "::1:7400",
        "[::1]",
        "[a]:1",
        "a:-1",
        "a:\u0661",
        "a:100000",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|65535"):
        split_address(text)


def test_addresses_are_split() -> None:
    assert split_address("localhost:7400") == ("localhost", 7400)
    assert split_address("[::1]:0") == ("::1", 0)


# Keys


@pytest.mark.parametrize(
    ("fields", "name", "rule"),
    [
        ({"algorithm": "HS256"}, "secret", "one of them"),
        ({"algorithm": "HS256", "secret": SECRET, "secret_file": "x"}, "secret", "one of them"),
        ({"algorithm": "HS256", "secret": "s" * 31}, "secret", "at least 32 bytes"),
        ({"algorithm": "HS384", "secret": "s" * 47}, "secret", "at least 48 bytes"),
        ({"algorithm": "HS512", "secret": "s" * 63}, "secret", "at least 64 bytes"),
        ({"algorithm": "HS256", "public_key": "x"}, "secret", "one of them"),
        ({"algorithm": "HS256", "secret": SECRET, "public_key": "x"}, "public_key", "no place"),
        ({"algorithm": "RS256", "secret": SECRET}, "public_key", "one of them"),
        ({"algorithm": "RS256", "public_key": "x", "secret": SECRET}, "secret", "no place"),
        ({"algorithm": "none", "secret": SECRET}, "algorithm", "none"),
        ({"algorithm": "HS256", "secret": SECRET, "kid": ""}, "kid", "regex"),
        (
            {"algorithm": "HS256", "secret": "-----BEGIN PUBLIC KEY-----" + SECRET},
            "secret",
            "no shared secret",
        ),
    ],
)
def test_a_key_fits_its_algorithm(fields: dict[str, str], name: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Key(**fields)  # type: ignore[arg-type]
    assert caught.value.key == f"auth.keys.{name}"
    assert rule in caught.value.rule
    assert SECRET not in str(caught.value)


def test_a_secret_in_a_file_is_judged_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("short\n")
    tree = {"auth.keys": [{"algorithm": "HS256", "secret_file": str(path)}]}
    error = refused(overrides=tree)
    assert error.key == "auth.keys.0.secret_file"
    assert "at least 32 bytes" in error.rule
    path.unlink()
    assert "cannot read" in refused(overrides=tree).rule


def test_every_key_and_namespace_has_a_name_of_its_own() -> None:
    key = Key(algorithm="HS256", secret=SECRET)
    with pytest.raises(ConfigError, match="kid of its own"):
        Auth(keys=(key, key))
    room = Namespace(prefix="room")
    with pytest.raises(ConfigError, match="prefix of its own"):
        Config(namespaces=(room, room))


def test_serving_asks_for_a_key_or_dev() -> None:
    with pytest.raises(ConfigError, match="without a key every login is refused"):
        check_serve(Config())
    check_serve(Config(dev=True))
    check_serve(Config(auth=Auth(keys=(Key(algorithm="HS256", secret=SECRET),))))


def test_serving_asks_for_descriptors() -> None:
    have = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert default_connections() == min(have - 256, 100_000)
    check_serve(Config(dev=True, limits=Limits(max_connections=have - 256)))
    with pytest.raises(ConfigError, match=r"limits\.max_connections: is at most"):
        check_serve(Config(dev=True, limits=Limits(max_connections=have - 255)))


@pytest.mark.parametrize(
    ("hostname", "node"),
    [("web-1", "web-1"), ("häst 1", "h-st-1"), ("", "node"), ("x" * 80, "x" * 64)],
)
def test_the_node_is_an_identifier(
    hostname: str, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: hostname)
    assert default_node() == node
    assert Config().node == node


# Shown


def test_what_is_shown_reads_back(tmp_path: Path) -> None:
    config = Config(
        node="n1",
        threads=2,
        reconnect=Reconnect(factor=1.5),
        websocket=Websocket(origins=("https://a.example", "http://[::1]:80")),
        auth=Auth(issuer='odd "\\\x7f\n\x00é😀'),
        namespaces=(Namespace(prefix="room", publish="anyone"),),
    )
    assert load(write(tmp_path, to_toml(config))) == config


def test_a_secret_is_shown_nowhere(tmp_path: Path) -> None:
    config = Config(auth=Auth(keys=(Key(algorithm="HS256", secret=SECRET),)))
    for text in (to_toml(config), repr(config), str(config), f"{config.auth.keys}"):
        assert SECRET not in text
    assert 'secret = "***"' in to_toml(config)
    assert SECRET not in str(list(config.auth.keys[0].__rich_repr__()))
    environ = {"IMSERVER_AUTH__KEYS": f'[{{"algorithm": "HS256", "secret": ["{SECRET}"]}}]'}
    assert SECRET not in str(refused(environ=environ))
    environ = {"IMSERVER_AUTH__KEYS": SECRET}
    assert SECRET not in str(refused(environ=environ))
    environ = {"IMSERVER_AUTH__KEYS__0__ALGORITHM__SECRET": SECRET}
    assert SECRET not in str(refused(environ=environ))


def test_the_example_shows_every_setting_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / "examples/imserver.toml").read_text()
    assert load(ROOT / "examples/imserver.toml") == Config()
    everything = re.sub(r"^#(?=[\[a-z])", "", text, flags=re.M)
    config = load(write(tmp_path, everything))
    limits = msgspec.structs.replace(config.limits, max_connections=default_connections())
    assert msgspec.structs.replace(config, node=default_node(), limits=limits) == Config()
    for name in {name.rpartition(".")[2] for name, _ in settings(Config)}:
        assert re.search(
            rf"^#\s*(\[\[)?{name}\b|{name}(_file)? =|\.{name}\]\]|\[{name}\]", text, re.M
        )


# Documents


def settings(kind: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every setting by its full name, with msgspec's description of the field."""
    found: list[tuple[str, Any]] = []
    for item in msgspec.structs.fields(kind):
        key = f"{path}.{item.name}".lstrip(".")
        hint = hints(kind)[item.name]
        if isinstance(hint, type) and issubclass(hint, Section):
            found += settings(hint, key)
            continue
        found.append((key, item))
        if get_origin(hint) is tuple and isinstance(get_args(hint)[0], type):
            found += settings(get_args(hint)[0], key)
    return found


def documented() -> dict[str, str]:
    text = (ROOT / "docs/operations.md").read_text()
    parts = re.split(r"^#+ (.*)$", text, flags=re.M)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {heading: body for heading, body in bodies.items() if re.fullmatch("[a-z_.]+", heading)}


def test_every_setting_has_a_heading_and_every_heading_a_setting() -> None:
    assert sorted(documented()) == sorted(key for key, _ in settings(Config))


@pytest.mark.parametrize(("key", "item"), settings(Config), ids=lambda value: str(value)[:40])
def test_the_documents_state_the_default(key: str, item: Any) -> None:
    body = documented()[key]
    if item.required:
        assert "No default." in body
    elif item.default is msgspec.NODEFAULT or key == "namespaces":
        assert re.match(r"\s+Default: the ", body)
    else:
        value = "[]" if item.default == () else toml_value(item.default)
        assert f"Default: `{value}`." in body


def test_every_setting_says_why() -> None:
    lines = (ROOT / "imserver/config.py").read_text().splitlines()
    names = {key.rpartition(".")[2] for key, _ in settings(Config)}
    for number, line in enumerate(lines):
        if match := re.match(r"    (\w+): .* = |    (\w+): \w+$|    (\w+): Annotated", line):
            name = match[1] or match[2] or match[3]
            if name in names:
                assert lines[number - 1].lstrip().startswith("#:"), line


def test_lists_of_names_are_shown_and_read_back(tmp_path: Path) -> None:
    key = {"name": "k", "secret_file": str(tmp_path / "s"), "scopes": ["publish", "read"]}
    (tmp_path / "s").write_text("s" * 32 + "\n")
    environ = {
        "IMSERVER_API__KEYS": json.dumps([key]),
        "IMSERVER_WEBSOCKET__ORIGINS__0": "https://app.example",
    }
    config = load(environ=environ)
    assert config.api.keys[0].scopes == ("publish", "read")
    assert config.api.keys[0].material() == b"s" * 32
    assert load(write(tmp_path, to_toml(config))) == config


@pytest.mark.parametrize(
    ("key", "name", "rule"),
    [
        ({"secret": "s" * 31}, "secret", "at least 32 bytes"),
        ({"secret": "s" * 32 + " "}, "secret", "printable ASCII"),
        ({"secret": "é" * 32}, "secret", "printable ASCII"),
        ({}, "secret", "one of them"),
        ({"secret": "s" * 32, "secret_file": "/x"}, "secret", "one of them"),
        ({"secret_file": "/nowhere"}, "secret_file", "cannot read"),
        ({"secret": "s" * 32, "scopes": ["everything"]}, "scopes", "enum value"),
        ({"secret": "s" * 32, "name": "a b"}, "name", "regex"),
    ],
)
def test_an_api_key_that_is_none_is_refused(key: dict[str, Any], name: str, rule: str) -> None:
    error = refused(overrides={"api.keys": [{"name": "k"} | key]})
    assert error.key.startswith("api.keys.0")
    assert error.key.split(".")[3] == name
    assert rule in error.rule
    assert "ssss" not in str(error)
