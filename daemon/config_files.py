"""Strict reading of configuration: YAML files, overrides, and all problems at once.

Knows nothing of what the settings mean. A document remembers where each value came from (line of
a file, environment variable, command line), so that a problem names the place to correct it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from daemon.errors import ConfigError

Location = tuple[Any, ...]
"""Keys and list positions from the top of a document down to a value."""

_Model = TypeVar("_Model", bound=BaseModel)
_SECRET_WORDS: Final = ("secret", "password")
_LONGEST_VALUE: Final = 60  # characters of a value shown in a problem
_NOTHING: Final = object()


class _Loader(yaml.SafeLoader):
    """Read 1e-6 as a number, as YAML 1.2 does; the parser knows 1.1, where it is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]+$"), "-+0123456789"
)


@dataclass
class Problems:
    """Collect everything that is wrong, and raise it as one ConfigError."""

    texts: list[str] = field(default_factory=list)

    def add(self, where: str, text: str) -> None:
        """Note one problem; the same one is noted once."""
        problem = f"{where}: {text}"
        if problem not in self.texts:
            self.texts.append(problem)

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems, one a line; return if there are none."""
        if self.texts:
            count = "1 problem" if len(self.texts) == 1 else f"{len(self.texts)} problems"
            lines = "".join(f"\n  - {text}" for text in self.texts)
            raise ConfigError(f"the configuration has {count}:{lines}")


@dataclass
class Document:
    """The values of one file with overrides laid over them, and where each came from."""

    name: str
    values: dict[Any, Any] = field(default_factory=dict)
    lines: dict[Location, int] = field(default_factory=dict)
    overrides: dict[Location, str] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """Name the place to correct a value: its override, or the nearest known line of the file.

        A problem of a whole section may come from the file and from overrides within it: both.
        """
        within = []
        for overridden, source in self.overrides.items():
            if overridden == location[: len(overridden)]:
                return source
            if location and location == overridden[: len(location)]:
                within.append(source)
        return " with ".join((self._line(location), *within))

    def _line(self, location: Location) -> str:
        for length in range(len(location), 0, -1):
            line = self.lines.get(location[:length])
            if line is not None:
                return f"{self.name} line {line}"
        return self.name

    def is_overridden(self, location: Location) -> bool:
        """Tell whether the value there, or a part that holds it, was laid over the file."""
        return any(location[: len(overridden)] == overridden for overridden in self.overrides)

    def override(self, location: Location, value: object, source: str) -> None:
        """Lay a value over the file's; a part of the path that holds no keys is replaced."""
        mapping = self.values
        for key in location[:-1]:
            deeper = mapping.get(key)
            if not isinstance(deeper, dict):
                deeper = mapping[key] = {}
            mapping = deeper
        mapping[location[-1]] = value
        self.overrides[location] = source

    def value(self, location: Location) -> object:
        """Return the raw value there, or None."""
        found: Any = self.values
        for key in location:
            found = _child(found, key)[1]
        return None if found is _NOTHING else found

    def remove(self, location: Location) -> bool:
        """Take a value out, so that its default holds; False if there is none to take."""
        parent: Any = self.value(location[:-1])
        if not isinstance(parent, dict | list):
            return False
        if _child(parent, location[-1])[1] is _NOTHING:
            return False
        del parent[location[-1]]
        return True


def read_document(path: Path, problems: Problems, name: str | None = None) -> Document:
    """Read a YAML file of keys and values; what is wrong with it goes to the problems.

    Refuses duplicate keys, which YAML parsers silently let win or lose. An empty file is an empty
    document.
    """
    document = Document(name or str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.add(document.name, "the file does not exist: create it or name another folder")
        return document
    except (OSError, UnicodeDecodeError) as error:
        problems.add(document.name, f"the file cannot be read: {error}")
        return document
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _note_lines(node, document, problems)
            values = loader.construct_document(node)
            if isinstance(values, dict):
                document.values = values
            elif values is not None:
                problems.add(document.name, "the file must hold keys and values, as in `bus: {}`")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
        problems.add(f"{document.name}{place}", f"not valid YAML: {error.problem}; correct it here")
    except (yaml.YAMLError, ValueError, TypeError) as error:
        # ValueError: a date that does not exist. TypeError: a key that cannot be one.
        problems.add(document.name, f"not valid YAML: {' '.join(str(error).split())}")
    return document


def overrides_from(environment: Mapping[str, str], prefix: str) -> dict[Location, tuple[Any, str]]:
    """Return settings given as `PREFIX__SECTION__KEY=value`, with the variable's name.

    Lists, mappings and null are written as in YAML; all else is text that the model converts.
    """
    found: dict[Location, tuple[Any, str]] = {}
    for variable, text in sorted(environment.items()):
        if variable.startswith(f"{prefix}__"):
            location = tuple(variable.removeprefix(f"{prefix}__").lower().split("__"))
            found[location] = (_environment_value(text), f"environment variable {variable}")
    return found


def validated(
    model: type[_Model],
    document: Document,
    problems: Problems,
    moved: Mapping[Location, Location] | None = None,
) -> _Model:
    """Turn a document into its model; values that do not fit become problems and their defaults.

    So that everything wrong is found in one go, what comes back may rest on defaults: raise the
    problems before using it. moved: values that were copied, and where they are really written.
    Raises the problems itself where a required value has no default.
    """
    moved = moved or {}
    reported: tuple[str, ...] | None = None  # kinds of errors to report; None: all
    while True:
        try:
            result = model.model_validate(document.values)
            break
        except ValidationError as error:
            errors = error.errors(include_url=False)
        located = [(_location(details["loc"], document.values), details) for details in errors]
        _report(model, document, problems, located, moved, reported)
        reported = ("value_error",)  # the rest would only follow from what is taken out here
        removed = [
            document.remove(location)
            for location in sorted({place for place, _ in located if place}, key=_order)[::-1]
        ]
        if not any(removed):
            problems.raise_if_any()
            raise ConfigError(f"{document.name} cannot be used: {errors[0]['msg']}")
    for location, text in _loosely_typed(result, document.values):
        place = moved.get(location, location)
        if not document.is_overridden(place):
            problems.add(document.where(place), f"{dotted(place)} {text}")
    return result


def dotted(location: Location) -> str:
    """Write a location as a person would: monitoring.latency_warning_ms, instruments[2].type."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def shown(location: Location, value: object) -> str:
    """Write a value for a problem: short, and never a secret."""
    if any(word in str(part).lower() for part in location for word in _SECRET_WORDS):
        return "(hidden)"
    text = repr(value)
    if "://" in text and "@" in text:
        return "(hidden: holds a password)"
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _note_lines(root: yaml.Node, document: Document, problems: Problems) -> None:
    """Record the line of every key and report keys written twice.

    Each node is visited once: an alias of an earlier node keeps the lines of its first place.
    """
    waiting: list[tuple[Location, yaml.Node]] = [((), root)]
    visited: set[int] = set()
    while waiting:
        location, node = waiting.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                document.lines[*location, position] = item.start_mark.line + 1
                waiting.append(((*location, position), item))
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, item in node.value:
                line = key.start_mark.line + 1
                name = str(key.value)
                place = (*location, name)
                if name in seen:
                    problems.add(
                        f"{document.name} line {line} column {key.start_mark.column + 1}",
                        f"{dotted(place)} is already given in line {seen[name]}: remove one",
                    )
                seen[name] = line
                document.lines[place] = line
                waiting.append((place, item))


def _environment_value(text: str) -> object:
    if text.strip() == "null":
        return None
    if text.lstrip().startswith(("[", "{")):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text  # then the model says what it wants instead
    return text


def _order(location: Location) -> list[tuple[bool, int, str]]:
    """Sort parents before children, and list items by position."""
    return [
        (True, part, "") if isinstance(part, int) else (False, 0, str(part)) for part in location
    ]


def _child(parent: object, key: object) -> tuple[Any, object]:
    """Return the child's own key and the child; keys match as text too (a date, a number)."""
    if isinstance(parent, dict):
        for own, child in parent.items():
            if own == key or str(own) == str(key):
                return own, child
    if isinstance(parent, list) and isinstance(key, int) and 0 <= key < len(parent):
        return key, parent[key]
    return None, _NOTHING


def _location(loc: tuple[int | str, ...], values: object) -> Location:
    """Follow an error into the document; parts that only name a branch of a union are left out."""
    location: list[Any] = []
    at = values
    for part in loc:
        own, child = _child(at, part)
        if child is not _NOTHING:
            location.append(own)
            at = child
    return tuple(location)


def _report(
    model: type[BaseModel],
    document: Document,
    problems: Problems,
    located: list[tuple[Location, ErrorDetails]],
    moved: Mapping[Location, Location],
    kinds: tuple[str, ...] | None,
) -> None:
    grouped: dict[Location, list[str]] = {}
    places = [location for location, _ in located]
    for location, details in located:
        # Of a union, the branch that got further counts; a list is too short without its bad items.
        is_echo = details["type"] in {"literal_error", "too_short"} and any(
            len(other) > len(location) and other[: len(location)] == location for other in places
        )
        is_wanted = kinds is None or details["type"] in kinds
        if is_wanted and not is_echo:
            place = moved.get(location, location)
            texts = grouped.setdefault(place, [])
            text = _sentence(model, document, place, details)
            if text not in texts:
                texts.append(text)
    for place, texts in grouped.items():
        value = document.value(place)
        label = dotted(place)
        if place and not isinstance(value, dict | list):
            label += f" = {shown(place, value)}"
        remedy = _remedy(model, place, value)
        text = " or ".join(texts) + (f" ({remedy})" if remedy else "")
        problems.add(document.where(place), f"{label}: {text}" if label else text)


def _sentence(
    model: type[BaseModel], document: Document, location: Location, details: ErrorDetails
) -> str:
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown_key(model, location)
    if kind == "missing":
        return f"the key {details['loc'][-1]} is missing: add it"
    if kind == "string_type" and isinstance(details["input"], int | float):
        written = shown(location, details["input"])
        return f'must be text: write it in quotes, "{written}"'
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        if document.value(location) is None:
            return "holds nothing: remove the key or put settings under it"
        return "must hold keys and values"
    message = details["msg"].removeprefix("Value error, ")
    return re.sub(r"^\w+ should", "must", message)


def _remedy(model: type[BaseModel], location: Location, value: object) -> str:
    """Name the default of a single value, which is always a good one."""
    if isinstance(value, dict) or not location:
        return ""
    info = _field(model, location)
    if info is None or info.is_required() or isinstance(info.default, BaseModel):
        return ""
    if info.default is None or isinstance(info.default, tuple):
        return ""
    return f"the default is {info.default}"


def _unknown_key(model: type[BaseModel], location: Location) -> str:
    key = str(location[-1])
    parent = _model_at(model, location[:-1])
    known = [] if parent is None else [name for name, _ in _fields(parent)]
    near = get_close_matches(key, known, n=1)
    if near:
        return f"unknown key: did you mean {near[0]}?"
    elsewhere = [dotted(place) for place in _leaves(model) if place[-1] == key]
    if elsewhere:
        return f"unknown key: it belongs to {' or '.join(elsewhere)}"
    return f"unknown key: remove it, known are {', '.join(known)}"


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        yield info.alias or name, info


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in {Union, UnionType, tuple, list, dict}:
        for argument in get_args(annotation):
            yield from _models_in(argument)


def _field(model: type[BaseModel], location: Location) -> FieldInfo | None:
    parent = _model_at(model, location[:-1])
    return None if parent is None else dict(_fields(parent)).get(str(location[-1]))


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """Return the model that holds the keys at a location; lists and mappings are stepped over."""
    at: type[BaseModel] | None = model
    for part in location:
        info = None if at is None else dict(_fields(at)).get(str(part))
        if info is not None:
            at = next(_models_in(info.annotation), None)
    return at


def _leaves(model: type[BaseModel], above: Location = ()) -> Iterator[Location]:
    for name, info in _fields(model):
        inner = next(_models_in(info.annotation), None)
        if inner is None:
            yield (*above, name)
        else:
            yield from _leaves(inner, (*above, name))


def _loosely_typed(
    result: object, raw: object, at: Location = ()
) -> Iterator[tuple[Location, str]]:
    """Yield values that were converted although the file says something else than is meant."""
    if isinstance(result, BaseModel) and isinstance(raw, dict):
        names = {info.alias or name: name for name, info in type(result).model_fields.items()}
        for key, value in raw.items():
            if key in names:
                yield from _loosely_typed(getattr(result, names[key]), value, (*at, key))
    elif isinstance(result, tuple) and isinstance(raw, list):
        for position, (item, value) in enumerate(zip(result, raw, strict=False)):
            yield from _loosely_typed(item, value, (*at, position))
    elif isinstance(result, bool) and not isinstance(raw, bool):
        yield at, f"= {raw!r}: must be true or false, without quotes"
    elif isinstance(result, int | float | Decimal) and not isinstance(result, bool):
        if isinstance(raw, bool):
            yield at, f"= {str(raw).lower()}: must be a number"
        elif isinstance(raw, str):
            yield at, f"= {raw!r}: must be a number, without quotes"
