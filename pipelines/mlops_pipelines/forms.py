"""A spec as a flat form, and back: what a DAG shows as its Params. Pure, no Airflow.

Nested specs become sections: ``capacity.nodes`` is the field ``capacity_nodes`` in the section "capacity".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from mlops_sdk.errors import SettingsError
from mlops_sdk.invalid import wrong_fields

_LEFT_OUT = {"default", "additionalProperties"}  # the second may refer to definitions that a lone field does not have
Spec = TypeVar("Spec", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """One field of a form: its default and its JSON schema, with title, description and section."""

    default: Any
    schema: dict[str, Any]


def form_of(spec: type[BaseModel]) -> dict[str, FormField]:
    """The form of a spec whose every field has a default.

    Example:
        form_of(RetrainSpec)["capacity_nodes"].default  # 2
    """
    fields: dict[str, FormField] = {}
    for name, field in spec.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            nested = _fields(type(default), default)
            fields |= {f"{name}_{inner}": _in_section(item, name) for inner, item in nested.items()}
    return _fields(spec, None) | fields


def parse_form(spec: type[Spec], values: Mapping[str, Any]) -> Spec:
    """The spec that a filled-in form means. Fields that are missing keep their defaults.

    Raises:
        SettingsError: naming each field that is wrong or unknown.
    """
    nested: dict[str, Any] = {}
    sections = {name for name, field in spec.model_fields.items() if isinstance(field.default, BaseModel)}
    for key, value in values.items():
        section = next((name for name in sections if key.startswith(f"{name}_")), "")
        if section:
            nested.setdefault(section, _defaults(spec, section))[key.removeprefix(f"{section}_")] = value
        else:
            nested[key] = value
    try:
        return spec.model_validate(nested)
    except ValidationError as error:
        raise SettingsError(
            f"the form of {spec.__name__} is not filled in right",
            seen=wrong_fields(error, joined_by="_"),
            next_step="correct the named fields",
        ) from None


def _fields(spec: type[BaseModel], values: BaseModel | None) -> dict[str, FormField]:
    properties = cast("dict[str, dict[str, Any]]", spec.model_json_schema()["properties"])
    fields: dict[str, FormField] = {}
    for name, field in spec.model_fields.items():
        default = getattr(values, name) if values else field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            continue
        schema = {key: value for key, value in properties[name].items() if key not in _LEFT_OUT}
        fields[name] = FormField(default=to_jsonable_python(default), schema={**schema, "title": name})
    return fields


def _in_section(field: FormField, section: str) -> FormField:
    return FormField(default=field.default, schema={**field.schema, "section": section})


def _defaults(spec: type[BaseModel], section: str) -> dict[str, Any]:
    return cast("BaseModel", spec.model_fields[section].default).model_dump()
