"""docs/permissions.md says what the code asks for, to the letter: an operator copies it from there."""

from __future__ import annotations

import uuid
from pathlib import Path

from mlops_sdk.identity.credential import run_access_rules
from mlops_sdk.identity.s3_policy import role_policy, trust_policy
from mlops_sdk.names import run_key

PAGE = (Path(__file__).parents[3] / "docs" / "permissions.md").read_text()
RUN = uuid.UUID(int=7)


def part(name: str) -> list[str]:
    text = PAGE.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    return [line for line in text.splitlines() if line and not line.startswith("```")]


def test_the_access_rules_of_a_run():
    rows = [tuple(cell.strip(" `") for cell in line.strip("|").split("|")) for line in part("rules")[2:]]
    own = f"ml-{run_key(RUN)}-g3-"
    found = [(service, method, path.replace("<own>", own)) for service, method, path in rows]
    assert found == [(rule.service, rule.method, rule.path) for rule in run_access_rules(RUN, 3)]


def test_the_policies_of_the_role():
    assert part("trust") == [trust_policy("arn:aws:iam:::user/mlops")]
    assert part("rights") == [role_policy("mlops")]
