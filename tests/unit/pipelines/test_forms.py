"""A spec as the form of a DAG: every field is there with its limits, and what is filled in comes back as the spec."""

from __future__ import annotations

import jsonschema
import pytest

from mlops_pipelines.forms import form_of, parse_form
from mlops_pipelines.specs import RetrainSpec
from mlops_sdk.errors import SettingsError


def test_the_untouched_form_means_the_default_spec():
    values = {name: field.default for name, field in form_of(RetrainSpec).items()}
    assert parse_form(RetrainSpec, values) == RetrainSpec()


def test_every_field_explains_itself_and_its_default_is_valid():
    for name, field in form_of(RetrainSpec).items():
        assert field.schema["description"].endswith("."), name
        jsonschema.validate(field.default, field.schema)


def test_what_is_filled_in_arrives_in_the_spec():
    spec = parse_form(RetrainSpec, {"capacity_nodes": 1, "data_corpora": ["python", "cpp"], "ref": "refs/heads/main"})
    assert (spec.capacity.nodes, spec.data.corpora, spec.ref) == (1, ("python", "cpp"), "refs/heads/main")
    assert spec.program == RetrainSpec().program


def test_a_form_that_is_filled_in_is_valid_json_schema():
    form = form_of(RetrainSpec)
    jsonschema.validate({"steps": 3, "champion": None, "deep": {"er": [1]}}, form["program_arguments"].schema)


def test_nested_fields_are_grouped_in_sections():
    form = form_of(RetrainSpec)
    assert form["capacity_nodes"].schema["section"] == "capacity"
    assert "section" not in form["commit"].schema


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"capacity_nodes": 0}, "capacity_nodes"),
        ({"commit": "main"}, "commit"),
        ({"data_corpora": ["latin"]}, "data_corpora"),
        ({"nodes": 2}, "nodes"),
        ({"capacity_node": 2}, "capacity_node"),
    ],
)
def test_a_wrong_or_unknown_field_is_named(values: dict[str, object], named: str):
    with pytest.raises(SettingsError, match=named):
        parse_form(RetrainSpec, values)


def test_what_a_pipeline_says_about_keeping_machines_is_in_its_form():
    given = {"capacity_provider": "nova", "capacity_hold_on_failure_s": 600, "capacity_keep_warm_s": 60}
    capacity = parse_form(RetrainSpec, given).capacity
    assert (capacity.provider, capacity.hold_on_failure_s, capacity.keep_warm_s) == ("nova", 600.0, 60.0)
    with pytest.raises(SettingsError, match="not filled in right") as caught:
        parse_form(RetrainSpec, {"capacity_keep_warm_s": -1})
    assert "capacity_keep_warm_s" in caught.value.seen
