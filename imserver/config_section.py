"""What all sections of the configuration share: checked when they are built, by every way.

A value of a wrong type or out of its range, and rules that a type cannot express, raise
`ConfigError`, which names the setting and the rule.

Not here: the settings themselves (config).
"""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import msgspec


class ConfigError(ValueError):
    """A setting that cannot be used. `key` names it ("limits.calls"), `rule` says what holds
    instead, `source` where the value came from, if that is known. Never contains a secret."""

    def __init__(self, key: str, rule: str, source: str = "") -> None:
        super().__init__(key, rule, source)
        self.key, self.rule, self.source = key, rule, source

    def __str__(self) -> str:
        origin = f" (from {self.source})" if self.source else ""
        return f"{self.key}{origin}: {self.rule}"


@cache
def hints(kind: type[Any]) -> dict[str, Any]:
    """The types of a section's settings by name, with their bounds."""
    found = get_type_hints(kind, include_extras=True)
    return {name: found[name] for name in kind.__struct_fields__}


def broken_rule(error: msgspec.ValidationError) -> str:
    """What msgspec holds against a value, in the words of our own messages."""
    text = str(error).replace("`", "")
    return text[:1].lower() + text[1:]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections share: types and ranges are checked by every constructor."""

    path: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            given = getattr(self, name)
            try:
                value = msgspec.convert(given, hint)
            except msgspec.ValidationError as error:
                raise self.error(name, broken_rule(error)) from None
            if value is not given:  # a list for a tuple, 2 for 2.0
                msgspec.structs.force_setattr(self, name, value)
        self.check()

    def check(self) -> None:
        """Rules that a type cannot express."""

    def read_file(self, name: str) -> bytes:
        """What is in the file that a setting names. ConfigError when it cannot be read."""
        file: str = getattr(self, name)
        try:
            return Path(file).read_bytes()
        except OSError as error:
            raise self.error(name, f"cannot read {file}: {error.strerror}") from None

    def read_secret(self, name: str) -> bytes:
        """The same without the newline that editors put behind a secret."""
        return self.read_file(name).removesuffix(b"\n").removesuffix(b"\r")

    def error(self, name: str, rule: str) -> ConfigError:
        return ConfigError(f"{self.path}.{name}".lstrip("."), rule)
