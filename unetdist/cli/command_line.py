"""Command lines as people type them: habits from other tools, `-` for `_`, `key=value`; and help of 80 columns."""

import argparse
import difflib
import itertools
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from unetdist.cli import habits
from unetdist.errors import ConfigError

# Options of a command with settings that are no settings.
OWN_OPTIONS = ("config", "print_config", "print_completion", "help")
# Columns of the terminal that help uses, and the column in which the text of a setting begins.
WIDTH = min(80, shutil.get_terminal_size().columns)
TEXT_COLUMN = 34


def suggestion(word: str, known: Sequence[str], otherwise: str | None = None) -> str:
    """`; did you mean 'x'?` for the closest known word; `otherwise`, or a list of the known words, if none is close."""
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if otherwise is None else otherwise


def positive_int(text: str) -> int:
    """Parse a whole number over 0, as the `type` of an argparse option."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"invalid count: {text!r}; use a whole number over 0")
    return int(text)


def asks_for_help(argv: Sequence[str]) -> Literal["short", "all"] | None:
    """Which help the words ask for: `-h` and `--help` or `--help all`."""
    if not {"-h", "--help", "--help=all"} & {*argv}:
        return None
    return "all" if {"all", "--help=all"} & {*argv} else "short"


class Options(argparse.ArgumentParser):
    """An argparse parser whose errors are `ConfigError`, and which takes what people type for its options.

    `table` is that of a command in `habits.COMMANDS`. With `first`, plain --help shows only these options.
    """

    def __init__(self, prog: str, *, table: str = "", first: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(prog, formatter_class=HelpFormatter, allow_abbrev=False, add_help=False, **kwargs)
        self.table, self.first = habits.COMMANDS.get(table, {}), first

    def parse_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parse, or print the help and exit; `ConfigError` names the first word that is no option."""
        words = [self._known_word(word) for word in (sys.argv[1:] if args is None else args)]
        if (wanted := asks_for_help(words)) is not None:
            print(self.help(wanted), end="")
            sys.exit(0)
        known = [*self._option_string_actions]
        for word in words:
            name = word.split("=")[0]
            if word.startswith("--") and name not in known and word != "--":
                self.error(f"unknown option '{name}'{suggestion(name, known, '')}")
        try:
            parsed: argparse.Namespace = super().parse_args(words, namespace)
        except ConfigError as error:
            if str(error).startswith("missing:") and (lost := self._without_option(words)):
                raise ConfigError(f"'{lost[0]}' belongs to no option; {error}") from None
            raise
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and return the words that are not options of this parser as well."""
        return super().parse_known_args([self._known_word(word) for word in args], namespace)

    def _without_option(self, words: Sequence[str]) -> list[str]:
        for action in self._actions:
            action.required = False
        lost: list[str] = self.parse_known_args(words)[1]
        return lost

    def help(self, which: Literal["short", "all"] = "all") -> str:
        """The text of --help, or of `--help all`; the parser is of no use for anything else afterwards."""
        is_short = which == "short" and bool(self.first)
        hidden = [each for each in self._actions if is_short and not {*each.option_strings} & {*self.first}]
        for action in hidden:
            action.help = argparse.SUPPRESS
        if not hidden:
            return self.format_help()
        self.epilog = None
        return f"{self.format_help()}\n{len(hidden)} more options: {self.prog} --help all\n"

    @property
    def names(self) -> list[str]:
        """The options, without dashes."""
        return [option.lstrip("-") for option in self._option_string_actions]

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        message = message.removeprefix("argument ").replace("the following arguments are required:", "missing:")
        raise ConfigError(f"{message}; see {self.prog} --help")

    def _known_word(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if not name.startswith("-") and (not equals or Path(word).exists()):
            return word
        plain = name.lstrip("-")
        for spelling in (plain, plain.replace("_", "-"), plain.replace("-", "_")):
            if f"--{spelling}" in self._option_string_actions:
                return f"--{spelling}{equals}{value}"
        own = habits.meant(plain, self.table)
        return f"--{own}{equals}{value}" if own else word


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs to 80 columns; lines that begin with spaces, such as commands, do not change."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, width=WIDTH, max_help_position=24, **kwargs)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return filled(text, width)


def filled(text: str, width: int) -> str:
    """The paragraphs of a text, filled; lines that begin with spaces and words in backticks stay whole."""
    done: list[str] = []
    for kept, lines in itertools.groupby(text.strip().splitlines(), key=lambda line: line.startswith(" ") or not line):
        if kept:
            done += lines
            continue
        whole = re.sub(r"`[^`]+`", lambda found: found[0].replace(" ", "\0"), " ".join(lines))
        done += textwrap.wrap(whole.replace("\n", " "), width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(done).replace("\0", " ")


def settings_in_full(
    argv: Sequence[str], types: Mapping[str, Any], sections: Mapping[str, str], *, others: Sequence[str] = ()
) -> list[str]:
    """The words with the full names of settings, and with values as YAML writes them.

    `types` has the type of each setting by its dotted name, `sections` a setting of each section, and `others` what a
    misspelt name may have meant. `--field` is enough if only one section has the field. Raises `ConfigError` for names
    that are unknown or mean several settings.
    """
    words: list[str] = []
    waiting = last = ""
    for word in [*argv, "--"]:
        if waiting and not word.startswith("--"):
            words.append(as_meant(word, types.get(waiting)))
            waiting = ""
            continue
        if waiting and bool not in _kinds(types.get(waiting)):
            raise ConfigError(f"option '--{waiting}' needs a value; write --{waiting} VALUE.")
        words += ["true"] if waiting else []
        if word == "--":
            break
        name, equals, value = _as_option(word, last if _is_list(types.get(last)) else "").partition("=")
        last = _full_name(name.lstrip("-"), types, sections, others)
        words.append(f"--{last}" + (equals and f"={as_meant(value, types.get(last))}"))
        waiting = "" if equals or last == "print_config" else last
    return words


def _as_option(word: str, list_before: str) -> str:
    if word.startswith("-"):
        return word
    if word.endswith((".yaml", ".yml")):
        return f"--config={word}"
    if re.match(r"[\w.-]+=", word):
        return word
    lists = f", a list as --{list_before}=[1,2]" if list_before else ""
    raise ConfigError(f"'{word}' belongs to no option; write a setting as --section.field value{lists}.")


def _full_name(typed: str, types: Mapping[str, Any], sections: Mapping[str, str], others: Sequence[str]) -> str:
    name = typed.replace("-", "_")
    if name in types or name in OWN_OPTIONS:
        return name
    if (own := habits.meant(typed, habits.COMMANDS["train"])) in (*types, *OWN_OPTIONS):
        return str(own)
    if name in sections:
        raise ConfigError(f"option '--{name}' is a section; give one of its settings, such as --{sections[name]}.")
    full = [setting for setting in types if setting.endswith(f".{name}")]
    if len(full) > 1:
        raise ConfigError(f"option '--{name}' may be {' or '.join(f'--{one}' for one in full)}; write it in full")
    if not full:
        near = suggestion(name, [*types, *OWN_OPTIONS, *others], "; see --help")
        raise ConfigError(f"unknown option '--{name}'{near}")
    return full[0]


def as_meant(value: str, hint: Any) -> str:
    """A value as Python and sweeps write it (None, 100.0, 1e4), in the words that YAML has for the type."""
    kinds = [*_kinds(hint)]
    if value == "None":
        return "null" if NoneType in kinds else "none" if "none" in kinds else value
    # Not digits alone: a float would round those of a long number.
    if int in kinds and float not in kinds and re.fullmatch(r"[+-]?\d+(\.0*|(\.\d*)?e\+?\d\d?)", value, re.IGNORECASE):
        return str(int(float(value))) if float(value).is_integer() else value
    return value


def _is_list(hint: Any) -> bool:
    return any(get_origin(kind) is tuple for kind in _kinds(hint))


def _kinds(hint: Any) -> Iterator[Any]:
    """The types of a union, and the words of a choice."""
    if get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            yield from _kinds(one)
    elif get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        yield hint


def settings_help(
    parser: argparse.ArgumentParser,
    which: Literal["short", "all"],
    *,
    first: Collection[str],
    types: Mapping[str, Any],
    examples: Sequence[str],
    own: Options | None = None,
) -> str:
    """The help of a command with settings: the options of its `own`, and the `first` settings or all by section."""
    parts = [f"usage: {parser.usage}", filled(parser.description or "", WIDTH)]
    own = own or Options(parser.prog)
    own.add_argument("--config", metavar="FILE", help="YAML with any of the settings; may be repeated")
    if which == "all":
        own.add_argument("--print_config", action="store_true", help="print all settings as YAML, and exit")
        own.add_argument("--print_completion", metavar="jsonschema", help="print the schema of the YAML for editors")
    parts.append("options:\n" + own.help().partition("options:\n")[2].rstrip())
    groups = [(filled(f"{group.title}:", WIDTH), group._group_actions) for group in parser._action_groups]
    if which == "short":
        by_name = {action.dest: action for _, actions in groups for action in actions}
        groups = [("settings that are changed first, with their defaults:", [by_name[name] for name in first])]
    for title, actions in groups:
        entries = [_entry(action, types[action.dest]) for action in actions if action.dest in types]
        parts.append("\n".join([title, *entries]) if entries else "")
    parts.append("\n".join(["examples:", *(f"  {parser.prog} {example}" for example in examples)]))
    if which == "short":
        parts.append(f"All {len(types)} settings: {parser.prog} --help all")
    return "\n\n".join(filter(None, parts)) + "\n"


def _entry(action: argparse.Action, hint: Any) -> str:
    """One setting: its name and default on the left, its meaning on the right."""
    value = "VALUE" if action.required else action.default
    shown = value if isinstance(value, str) else json.dumps(value)
    choices = [str(kind) for kind in _kinds(hint) if isinstance(kind, str)]
    text = str(action.help)
    if not all(choice in text for choice in choices):
        text += f" ({', '.join(choices)})"
    left = f"  --{action.dest} {shown}"
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - TEXT_COLUMN, break_on_hyphens=False)
    if len(left) < TEXT_COLUMN - 1 and lines:
        left = left.ljust(TEXT_COLUMN) + lines.pop(0)
    return "\n".join([left, *(" " * TEXT_COLUMN + line for line in lines)])
