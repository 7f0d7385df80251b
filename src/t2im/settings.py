"""What is a setting, and what does a wrong one say? The base of all groups of settings, and the errors they raise.

A value must be what it is meant to be: "1e-4" in quotes is text and no number, true is no 1, and nothing is NaN. What
was read from a file is taken as it was meant, though: a list is good for a tuple, and "none" stands for None, which
TOML cannot write.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, TypeGuard, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from t2im.errors import ConfigError, nearest

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Group = TypeVar("Group", bound="Settings")

LONGEST_SHOWN = 60  # characters of a faulty value in an error


class Settings(BaseModel):
    """What all groups share: frozen, strict about names and types, documented by the text under each field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _as_files_write_it(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kinds = {name: set(_kinds(field.annotation)) for name, field in cls.model_fields.items()}
        return {name: _meant(value, kinds.get(name, set())) for name, value in values.items()}


def parse_settings(group: type[Group], values: Mapping[str, Any]) -> Group:
    """Validate a mapping against a group of settings; one ConfigError names everything that is wrong with it."""
    try:
        return group.model_validate(values)
    except ValidationError as error:
        explained = dict.fromkeys(_explain(group, values, fault) for fault in error.errors(include_url=False))
        raise ConfigError("; ".join(explained)) from None


def groups_with(group: type[Settings], name: str) -> list[str]:
    """Return the full names of all settings of that name: "training.seed" for "seed"."""
    groups = {key: field.annotation for key, field in group.model_fields.items() if _is_group(field.annotation)}
    return [f"{key}.{name}" for key, inner in groups.items() if name in inner.model_fields]


def _explain(group: type[Settings], values: Any, fault: Any) -> str:
    """Say in one line what is wrong with one setting, whichever of its possible types pydantic complains about."""
    path, inner = [], group
    for part in fault["loc"]:  # behind the name of a setting come indices, and types that it could have had
        path.append(str(part))
        values = values.get(part) if isinstance(values, Mapping) else None
        field = inner.model_fields.get(str(part))
        if field is None or not _is_group(field.annotation):
            break
        inner = field.annotation
    where = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return _unknown(group, inner, path)
    if fault["type"] == "missing" and len(path) == len(fault["loc"]):
        return f"{where} is missing"
    if fault["type"] == "value_error":  # of a validator that looks at several settings; it says all that there is
        message = str(fault["msg"]).removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    if not path or _is_group(inner.model_fields[path[-1]].annotation if path[-1] in inner.model_fields else inner):
        names = ", ".join(sorted(inner.model_fields))
        return f"{where or 'this'} is a group of settings, not a value; set one of {names}"
    if len(path) == len(fault["loc"]):
        values = fault["input"]
    schema = inner.model_json_schema()
    wanted = list(_wanted(schema["properties"][path[-1]], schema))
    choices = [word.strip('"') for word in wanted if word.startswith('"')]
    hint = nearest(values, choices) if isinstance(values, str) else ""
    if not hint and isinstance(values, str) and _is_number(values):
        hint = " (a text; leave its quotes out)"
    return f"{where}: {_shown(values)} is not valid{hint}; it must be {_joined(wanted)}"


def _unknown(root: type[Settings], group: type[Settings], path: Sequence[str]) -> str:
    where, name = ".".join(path), path[-1]
    valid = sorted(group.model_fields)
    hint = nearest(name, valid)
    if not hint and (elsewhere := groups_with(root, name)):
        hint = f" (did you mean {_joined([json.dumps(key) for key in elsewhere])}?)"
    return f'setting "{where}" is unknown{hint}. Valid here: {", ".join(valid)}'


def _wanted(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    """Say in words what a JSON schema asks for; each alternative by itself."""
    if "anyOf" in schema:
        for alternative in schema["anyOf"]:
            yield from _wanted(alternative, root)
    elif "enum" in schema or "const" in schema:
        yield from (json.dumps(choice) for choice in schema.get("enum", [schema.get("const")]))
    elif schema.get("type") == "array":
        entries = schema.get("prefixItems") or [schema.get("items", {})]
        each = _joined(list(dict.fromkeys(word for entry in entries for word in _wanted(entry, root))))
        count = f" of {len(entries)}" if "prefixItems" in schema else " of at least 1" * ("minItems" in schema)
        yield f"a list{count} with each entry {each}"
    else:
        words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
        yield words.get(schema.get("type", ""), '"none"' if schema.get("type") == "null" else "a table") + _limits(
            schema
        )


def _limits(schema: Mapping[str, Any]) -> str:
    words = {"exclusiveMinimum": "above", "minimum": "of at least", "exclusiveMaximum": "below", "maximum": "at most"}
    limits = [f"{word} {schema[key]:g}" for key, word in words.items() if key in schema]
    return f" {' and '.join(limits)}" if limits else ""


def _joined(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):  # a key that is no text, a list that holds itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_group(annotation: Any) -> TypeGuard[type[Settings]]:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield every type that an annotation is made of at its top, through unions and Annotated."""
    origin = get_origin(annotation)
    if origin is tuple or annotation is NoneType or origin is None:
        yield origin or annotation
    else:
        for part in get_args(annotation):
            yield from _kinds(part)


def _meant(value: Any, kinds: set[Any]) -> Any:
    if value == "none" and NoneType in kinds:
        return None
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    return value
