"""What is wrong with data that pydantic refused, for people. Pure."""

from __future__ import annotations

from pydantic import ValidationError


def wrong_fields(error: ValidationError, *, joined_by: str = ".", whole: str = "") -> str:
    """Which fields are wrong, and why; their values, which may be secret, are not repeated.

    Args:
        error: What pydantic found.
        joined_by: Between the parts of a nested field's name.
        whole: What the value as a whole is called.

    Example:
        ``"s3.endpoint: Field required; owner: Input should be a valid string"``
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{joined_by.join(str(part) for part in item['loc']) or whole}: {item['msg']}" for item in found)
