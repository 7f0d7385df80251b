"""What is a setting, and what does a wrong one say? The base of all groups of settings, and the errors they raise."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from t2im.errors import ConfigError, nearest

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Group = TypeVar("Group", bound="Settings")


class Settings(BaseModel):
    """What all groups share: frozen, strict about unknown names, documented by the text under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


def parse_settings(group: type[Group], values: Mapping[str, Any]) -> Group:
    """Validate a mapping against a group of settings; one ConfigError names everything that is wrong with it."""
    try:
        return group.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(group, fault) for fault in error.errors())) from None


def _explain(group: type[Settings], fault: Any) -> str:
    *parents, name = [part for part in fault["loc"]] or [""]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        valid = _fields(group, parents)
        return f'setting "{where}" is unknown{nearest(str(name), valid)}. Valid here: {", ".join(valid)}'
    message = fault["msg"].removeprefix("Value error, ")
    return (
        f"{where}: {message} (got {fault['input']!r})"
        if isinstance(fault["input"], str | int | float)
        else (f"{where}: {message}" if where else message)
    )


def _fields(group: type[Settings], parents: Iterable[Any]) -> list[str]:
    for parent in parents:
        annotation = group.model_fields[parent].annotation
        assert isinstance(annotation, type) and issubclass(annotation, Settings)
        group = annotation
    return sorted(group.model_fields)
