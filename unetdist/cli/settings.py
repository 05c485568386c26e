"""Turns YAML files and `--section.field value` into frozen dataclasses, or raises an error that names the key."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from unetdist.cli.command_line import Options, as_meant, asks_for_help, settings_help, settings_in_full, suggestion
from unetdist.errors import ConfigError

Settings = TypeVar("Settings")

# Largest YAML file in bytes; parsing reads about 50 kB per second.
MOST_BYTES = 1 << 17

# The texts of --help are the docstrings below the fields.
set_parsing_settings(docstring_parse_attribute_docstrings=True, add_print_completion_argument=True)

# The help of a command with settings ends with these.
EXAMPLES = ("--config my_data.yaml", "--config my_data.yaml --name second --optim.lr 0.0005")


def parse(
    cls: type[Settings],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    examples: Sequence[str] = EXAMPLES,
    own: Options | None = None,
) -> Settings:
    """Build `cls` from command-line arguments: defaults, then `--config` files, then `--section.field value`.

    `--field value` is enough if only one section has that field. `--help`, `--print_config` and `--print_completion`
    print and exit; help begins with the options of `own`. Raises `ConfigError` for anything else.
    """
    usage = own.usage if own is not None and own.usage else f"{prog} [--config FILE] [--section.field value ...]"
    parser, types = _parser(cls, prog=prog, usage=usage, description=description), dict(_types(cls))
    if (which := asks_for_help(argv)) is not None:
        first = getattr(cls, "FIRST", tuple(types))
        print(settings_help(parser, which, first=first, types=types, examples=examples, own=own), end="")
        sys.exit(0)
    sections = {name.rpartition(".")[0]: name for name in reversed(types)}
    words = _files_first(settings_in_full(argv, types, sections, others=own.names if own else ()), cls)
    try:
        namespace = parser.parse_args(words)
    except Exception as error:
        told, files = _plain(error), [str(file) for file in sorted(Path().glob("*.yaml"))[:3]]
        if told.startswith("missing") and files and not any(word.startswith("--config") for word in words):
            told += f"; here is --config {' or '.join(files)}"
        raise ConfigError(told) from None
    for name, other in getattr(cls, "WITHOUT", {}).items():
        if namespace.get(other) is not None and any(re.match(rf"--{name}(=|$)", word) for word in words):
            raise ConfigError(
                f"{name} ({namespace[name]}) has no effect next to {other} ({namespace[other]}); "
                f"leave it out, or add --{other} null."
            )
    return _instantiate(cls, parser, namespace)


def from_mapping(cls: type[Settings], values: Mapping[str, Any], *, where: str = "settings") -> Settings:
    """Build `cls` from a mapping such as `to_mapping` gives; `where` opens the error message."""
    parser = _parser(cls)
    values = checked(values, cls, where=where)
    try:
        namespace = parser.parse_object(values)
    except Exception as error:
        raise ConfigError(f"{where}: {_plain(error)}") from None
    return _instantiate(cls, parser, namespace)


def to_mapping(settings: Any) -> dict[str, Any]:
    """A dataclass as plain JSON and YAML types: sections as dicts, tuples as lists."""
    return {key: _to_plain(value) for key, value in dataclasses.asdict(settings).items()}


def to_yaml(values: Mapping[str, Any]) -> str:
    """The result of `to_mapping` as YAML, which `--config` reads back to equal settings."""
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def defaults(cls: type) -> dict[str, Any]:
    """The settings of a class that have a default, in the form of `to_mapping`."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            given[field.name] = defaults(field.type)  # type: ignore[arg-type]
        elif field.default is not dataclasses.MISSING:
            given[field.name] = _to_plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            given[field.name] = _to_plain(field.default_factory())
    return given


def checked(values: Mapping[str, Any], cls: type, *, where: str, prefix: str = "") -> dict[str, Any]:
    """The settings without those of older versions (`RETIRED` of a section) whose values changed nothing.

    Python's `None` is null where that is possible; YAML would read it as text.

    Raises:
        ConfigError: a name is unknown, or a retired setting has a value that is no longer possible.
    """
    # Our own check of the names, because the library suggests nothing for a misspelt one.
    types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(cls)}
    retired = getattr(cls, "RETIRED", {})
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if key in retired:
            if value != retired[key]:
                raise ConfigError(f"{where}: {prefix}{key} ({value}) no longer exists; remove it")
        elif key not in types:
            raise ConfigError(f"{where}: unknown setting '{prefix}{key}'{suggestion(str(key), list(types))}")
        elif not dataclasses.is_dataclass(section := types[key]):
            kept[key] = None if value == "None" and as_meant(value, section) == "null" else value
        elif isinstance(value, Mapping):
            kept[key] = checked(value, types[key], where=where, prefix=f"{prefix}{key}.")
        else:
            raise ConfigError(
                f"{where}: '{prefix}{key}' is a section, not a value ({value!r}); "
                f"write its settings below it, such as '{dataclasses.fields(section)[0].name}: ...'"
            )
    return kept


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `below`, replaced by those of `above` where both have them."""
    laid = dict(below)
    for key, value in above.items():
        under = laid.get(key)
        is_section = isinstance(value, Mapping) and isinstance(under, Mapping)
        laid[key] = laid_over(under, value) if is_section else value  # type: ignore[arg-type]
    return laid


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the settings whose values differ, each with its old and new value."""
    before, after = flat(old), flat(new)
    return {
        name: (before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of settings and their values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def as_words(values: Mapping[str, Any]) -> list[str]:
    """Settings, nested or dotted, as words of a command line, which is one set of rules for names and values."""
    words = []
    for name, value in flat(values).items():
        is_text = isinstance(value, (str, os.PathLike))
        # `item` is that of numbers of NumPy
        words.append(f"--{name}={os.fspath(value) if is_text else json.dumps(value, default=lambda one: one.item())}")
    return words


def _parser(cls: type, **kwargs: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, **kwargs)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    parser.add_class_arguments(cls)
    return parser


def _instantiate(cls: type[Settings], parser: ArgumentParser, namespace: Namespace) -> Settings:
    try:
        sections = parser.instantiate(namespace)
        return cls(**{field.name: sections[field.name] for field in dataclasses.fields(cls)})  # type: ignore[arg-type]
    except TypeError as error:  # the library lets null through where a number or a text is wanted
        raise ConfigError(f"a setting is null that needs a value ({error}); give it one, or leave it out") from None


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    return [_to_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _plain(error: Exception) -> str:
    """The parser's message on one line, in plain English."""
    text = re.sub(r"\s*\n\s*-?\s*", " ", str(error)).strip()
    text = re.sub(r"Parser key \"([^\"]+)\":?", r"\1:", text)
    missing = r"missing setting: \1; give it in the --config file or as --\1 VALUE"
    text = re.sub("the following arguments are required: (.*)", missing, text)
    return _plain_type_error(text.replace("typing.", ""))


def _plain_type_error(text: str) -> str:
    """`augment.crop_size (32) must be one of: [int, int], null` instead of the types and errors of a Union."""
    found = re.fullmatch(
        r"(?P<key>[\w.]+): (?:Does not validate against any of the Union subtypes Subtypes: \[(?P<union>.*)\] Errors: "
        r".* Given value|Expected an? (?P<one>.*)\. Got value): ?(?P<value>.*)",
        text,
    )
    if found is None:
        return text
    kinds = (found["union"] or found["one"]).replace("<class 'NoneType'>", "null")
    kinds = re.sub(r"<class '(\w+)'>", r"\1", kinds).replace("tuple[", "[")
    kinds = re.sub(r"\bbool\b", "true or false", kinds)
    choices = re.sub(r"Literal\[([^]]*)\]", r"\1", kinds)
    several = found["union"] or "Literal" in kinds
    hint = ""
    if found["value"] in ("True", "False") and "true" not in kinds:
        hint = " YAML reads on, off, yes and no as true and false: write them in quotes."
    return f"{found['key']} ({found['value']}) must be {'one of: ' if several else ''}{choices}.{hint}"


class _StrictLoader(yaml.SafeLoader):
    """YAML without aliases (`*name`) and repeated keys, of which the standard loader silently takes the last."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few lines of aliases can stand for 10^9 values, or for themselves.
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1
            problem = f"it has an alias (*{event.anchor}, line {line}); write its value there instead"
            raise yaml.constructor.ConstructorError(problem=problem)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f"'{key}' is given twice (line {line}); remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file; `ConfigError` if it is absent, not YAML, or has a key twice."""
    try:
        with open(file, "rb") as opened:
            text = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; give --config the path of a YAML file") from None
    return parse_yaml(text, where=str(file))


def parse_yaml(text: bytes, *, where: str) -> Mapping[str, Any]:
    """The mapping in a YAML text (UTF-8); `ConfigError`, which begins with `where`, if it is none or repeats a key."""
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{where}: has more than {MOST_BYTES} bytes; give the YAML file of a run's settings")
    try:
        values = yaml.load(text.decode(), Loader=_StrictLoader)
    except RecursionError:
        raise ConfigError(f"{where}: its brackets are nested too deep; settings have a few levels") from None
    # The library lets errors of Python's types through: dates, numbers, keys.
    except (yaml.YAMLError, ValueError, TypeError) as error:
        hints = {"\\t": "write spaces for tabs", "escape": "write paths with /", "codec": "save it as UTF-8"}
        hints |= {"block end": "check the spaces before this line"}
        hint = next((f"; {hint}" for sign, hint in hints.items() if sign in str(error)), "")
        told = _plain(error).replace(' in "<unicode string>"', "")
        raise ConfigError(f"{where}: not readable as YAML: {told}{hint}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: holds no settings; it must be a mapping such as 'name: my_run'")
    return values


def _types(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The names of all settings, such as `seed` and `model.widths`, and their types."""
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from _types(field.type, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield prefix + field.name, field.type


def _files_first(argv: Sequence[str], cls: type) -> list[str]:
    """The words, with the config files before the settings, so that these count wherever they stand.

    The path of a file with retired settings is replaced by its text without them.
    """
    files, others, words = list[str](), list[str](), iter(argv)
    for word in words:
        name, equals, given = word.partition("=")
        file = given if equals else next(words, None) if name == "--config" else None
        if name != "--config" or file is None:
            others.append(word)
            continue
        values = read_yaml(Path(file))
        now = checked(values, cls, where=file)
        files += ["--config", file if now == values else to_yaml(now)]
    return [*files, *others]
