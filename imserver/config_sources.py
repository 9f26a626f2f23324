"""Where settings come from, and how they are shown.

Last wins: defaults, the TOML file, `IMSERVER_SECTION__KEY` in the environment, the command line.
Nothing is guessed: an unknown key is an error, as are values out of range, and the message says
where the value came from. Values of `IMSERVER_..._FILE` are read from that file, so that a
secret needs to stand neither in the environment nor on a command line.

Not here: the settings themselves (config).
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

import msgspec

from imserver.config import Config, Key
from imserver.config_api import ApiKey
from imserver.config_section import ConfigError, Section, broken_rule, hints

PREFIX = "IMSERVER_"
#: Variables with our prefix that are options of single commands.
OPTIONS = frozenset({"CONFIG", "SERVER", "TOKEN"})
#: Kubernetes puts these into every container beside a Service that is called "imserver".
KUBERNETES = re.compile(r"(SERVICE_(HOST|PORT)|PORT)(_.*)?")
#: Never shown, and never quoted in a message.
SECRETS = frozenset({"secret"})

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def load(
    path: str | Path | None = None,
    *,
    environ: Mapping[str, str] = _NOTHING,
    overrides: Mapping[str, Any] = _NOTHING,
    defaults: Mapping[str, Any] = _NOTHING,
) -> Config:
    """The configuration from a TOML file, the environment and `overrides` ("limits.calls": 8).

    Pass `os.environ` for `environ`; without it the environment is not looked at. `overrides`
    are the command line's and the caller's own, `defaults` what stands where nobody says
    otherwise. Key files are read once, to see that they can
    be. ConfigError names what is wrong, and where it came from.
    """
    tree = _read_toml(Path(path)) if path is not None else {}
    sources = {"": str(path)} if path is not None else {}
    for parts, value, name in _environment(environ):
        _place(tree, parts, value, name)
        sources[".".join(parts)] = name
    for key, value in overrides.items():
        _place(tree, key.split("."), value, "the command line")
        sources[key] = "the command line"
    for key, value in defaults.items():
        tree.setdefault(key, value)
    try:
        config: Config = _build(Config, tree, "")
    except ConfigError as error:
        source = _source_of(error.key, sources)
        raise ConfigError(error.key, error.rule, source) from None
    return config


def _source_of(key: str, sources: Mapping[str, str]) -> str:
    """Who set the key, or something below it; the file is the guess that remains."""
    for known, source in sources.items():
        if known == key or known.startswith(f"{key}."):
            return source
    return sources.get("", "")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"is not TOML: {error}") from None


def _environment(environ: Mapping[str, str]) -> Iterator[tuple[list[str], str, str]]:
    """The settings in the environment: path, value, variable. Indices come in their order."""
    found = []
    for name in environ:
        rest = name.removeprefix(PREFIX)
        if rest != name and rest not in OPTIONS and not KUBERNETES.fullmatch(rest):
            found.append((rest.lower().split("__"), name))
    for parts, name in sorted(found, key=lambda item: [part.zfill(4) for part in item[0]]):
        stem = [*parts[:-1], parts[-1].removesuffix("_file")]
        if stem != parts and not _is_setting(parts) and _is_setting(stem):
            yield stem, _read_value(Path(environ[name]), name), name
        else:
            yield parts, environ[name], name


def _read_value(path: Path, name: str) -> str:
    try:
        return path.read_text("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ConfigError(name, f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(name, f"{path} is not UTF-8 text") from None


def _is_setting(parts: list[str]) -> bool:
    kind: Any = Config
    for part in parts:
        if get_origin(kind) is tuple:
            if not part.isdecimal():
                return False
            kind = get_args(kind)[0]
        elif _is_section(kind) and part in hints(kind):
            kind = hints(kind)[part]
        else:
            return False
    return not _is_section(kind)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _place(node: Any, parts: list[str], value: Any, name: str) -> None:
    """Put a value into the tree, by names and, in lists, by index; one past the end appends."""
    head: Any = parts[0]
    if isinstance(node, list):
        if not head.isdecimal() or int(head) > len(node):
            raise ConfigError(name, f"{head} is no place in a list of {len(node)}; count from 0")
        head = int(head)
        if head == len(node):
            node.append({})
    elif not isinstance(node, dict):
        raise ConfigError(name, "goes below a setting that is a single value")
    if len(parts) == 1:
        node[head] = value
        return
    if isinstance(node, dict):
        node.setdefault(head, [] if parts[1].isdecimal() else {})
    _place(node[head], parts[1:], value, name)


def _build(kind: Any, given: Any, path: str) -> Any:
    """A section out of a table, whole or not at all."""
    if not isinstance(given, dict):
        raise ConfigError(path, "is a section of settings, not a single value")
    known = hints(kind)
    values = {}
    for name, value in given.items():
        key = f"{path}.{name}".lstrip(".")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(key, f"no such setting; is it {near[0]}?" if near else _choice(known))
        values[name] = _convert(known[name], value, key)
    for item in msgspec.structs.fields(kind):
        if item.required and item.name not in values:
            raise ConfigError(f"{path}.{item.name}", "has no default: set it")
    try:
        section = kind(**values)
        if isinstance(section, Key | ApiKey):
            section.material()
    except ConfigError as error:
        # The section does not know its place in a list, "auth.keys.0".
        raise ConfigError(path + error.key.removeprefix(kind.path), error.rule) from None
    return section


def _choice(known: Mapping[str, Any]) -> str:
    return f"no such setting; there are {', '.join(known)}"


def _convert(kind: Any, value: Any, key: str) -> Any:
    if _is_section(kind):
        return _build(kind, value, key)
    if get_origin(kind) is tuple:
        if isinstance(value, str):
            value = _parse_list(value, key)
        if not isinstance(value, list):
            raise ConfigError(key, "is a list")
        return tuple(
            _convert(get_args(kind)[0], item, f"{key}.{index}") for index, item in enumerate(value)
        )
    try:
        # Text becomes what the setting is: the environment has nothing else to offer.
        return msgspec.convert(value, kind, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        rule = broken_rule(error)
        if isinstance(value, str | int | float) and key.rpartition(".")[2] not in SECRETS:
            rule = f"{rule}, not {value!r:.80}"
        raise ConfigError(key, rule) from None


def _parse_list(text: str, key: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        rule = "is written as JSON here: [{...}], or item by item"
        raise ConfigError(
            key, f"{rule}: {PREFIX}{key.upper().replace('.', '__')}__0__..."
        ) from None


def to_toml(config: Config) -> str:
    """Every setting as TOML that `load` reads back; secrets are replaced by "***"."""
    return "\n".join(_lines(config, "")).strip() + "\n"


def to_builtins(section: Section) -> dict[str, Any]:
    """The same as plain values."""
    return {name: _shown(name, getattr(section, name)) for name in hints(type(section))}


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, Section):
        return to_builtins(value)
    if isinstance(value, tuple):
        return [_shown(name, item) for item in value]
    return "***" if name in SECRETS and value else value


def _lines(section: Section, path: str) -> Iterator[str]:
    below: list[tuple[str, str, Section]] = []
    for name in hints(type(section)):
        value = getattr(section, name)
        key = f"{path}.{name}".lstrip(".")
        if isinstance(value, Section):
            below.append((key, f"[{key}]", value))
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            below += [(key, f"[[{key}]]", item) for item in value]
        elif isinstance(value, tuple):
            yield f"{name} = [{', '.join(map(toml_value, value))}]"
        elif name in SECRETS and value:
            yield f'{name} = "***"'
        else:
            yield f"{name} = {toml_value(value)}"
    for key, heading, item in below:
        yield f"\n{heading}"
        yield from _lines(item, key)


def toml_value(value: object) -> str:
    """A single value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
