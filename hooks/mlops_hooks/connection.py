"""What all our hooks share: an Airflow connection becomes checked, typed settings.

Only the extras of the connection type's form are read; anything else in there is refused, by name, because it is a
typing error more often than not. Secrets become `SecretStr` here and stay that.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, cast

from airflow.sdk import BaseHook, Connection
from pydantic import SecretStr, ValidationError

from mlops_hooks.forms import Form
from mlops_sdk.errors import MlopsError, SettingsError
from mlops_sdk.invalid import wrong_fields

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """A connection as typed, its extras checked against the form. What is empty in the form is absent in `extra`."""

    conn_id: str
    host: str
    login: str
    password: SecretStr
    port: int | None
    extra: Mapping[str, Any] = field(repr=False)

    def text(self, name: str, default: str = "") -> str:
        """An extra that is a text."""
        return str(self.extra.get(name, default))

    def secret(self, name: str) -> SecretStr:
        """An extra that is a secret."""
        return SecretStr(self.text(name))

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the named extras that are there."""
        return {name: self.extra[name] for name in names if name in self.extra}

    def required(self, name: str) -> str:
        """An extra, or host or login, that must be there.

        Raises:
            SettingsError: it is empty.
        """
        value = {"host": self.host, "login": self.login}.get(name) or self.text(name)
        if not value:
            raise SettingsError(
                f"connection {self.conn_id!r} has no {name}",
                next_step="fill the field in Airflow under Admin, Connections",
            )
        return value


class ConnectionHook(BaseHook, Generic[T]):
    """Base of the hooks of one connection type.

    Args:
        conn_id: Which connection.
    """

    form: ClassVar[Form]
    conn_name_attr: ClassVar[str] = "conn_id"
    default_conn_name: ClassVar[str]
    conn_type: ClassVar[str]
    hook_name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What Airflow asks a hook's class for follows from its form."""
        super().__init_subclass__(**kwargs)
        cls.conn_type = cls.default_conn_name = cls.form.conn_type
        cls.hook_name = cls.form.name

    def __init__(self, conn_id: str = "") -> None:
        super().__init__()
        self.conn_id = conn_id or self.default_conn_name

    def settings(self) -> T:
        """What the connection says.

        Raises:
            SettingsError: naming connection and field.
        """
        return self._read(self.get_connection(self.conn_id))

    async def asettings(self) -> T:
        """As `settings`, for triggers: does not block the event loop."""
        return self._read(await self.aget_connection(self.conn_id))

    def test_connection(self) -> tuple[bool, str]:
        """Ask the service itself; the second value says in a sentence what came of it."""
        try:
            return True, self.ask()
        except MlopsError as error:
            return False, str(error)

    @classmethod
    @abstractmethod
    def parse(cls, fields: Fields) -> T:
        """Typed settings from checked fields. Pure.

        Raises:
            SettingsError: naming a field.
            ValidationError: pydantic's own; whoever asks for the settings gets it as a `SettingsError`.
        """

    @abstractmethod
    def ask(self) -> str:
        """Ask the service something that only works when the connection is right; what it answered.

        Raises:
            MlopsError: it is not right, or the service does not answer.
        """

    def _read(self, connection: Connection) -> T:
        fields = read_fields(connection, self.form)
        try:
            return self.parse(fields)
        except ValidationError as error:
            raise validation_failed(self.conn_id, error) from None


def read_fields(connection: Connection, form: Form) -> Fields:
    """Check a connection against its form. Pure: neither the extras nor anything else is looked up again.

    Raises:
        SettingsError: another connection type, an unknown extra, or extras that are no JSON object.
    """
    if connection.conn_type != form.conn_type:
        raise SettingsError(
            f"connection {connection.conn_id!r} has the wrong type",
            seen=f"{connection.conn_type!r}, wanted {form.conn_type!r}",
            next_step="make a connection of that type, or name another one",
        )
    extra = _extra_of(connection)
    if unknown := sorted(set(extra) - set(form.extras)):
        raise SettingsError(
            f"connection {connection.conn_id!r} has extras that {form.conn_type!r} does not know",
            seen=", ".join(unknown),
            next_step=f"remove them; known are {', '.join(form.extras)}",
        )
    return Fields(
        conn_id=connection.conn_id,
        host=connection.host or "",
        login=connection.login or "",
        password=SecretStr(connection.password or ""),
        port=connection.port,
        extra={name: _plain(form, name, value) for name, value in extra.items() if value not in (None, "")},
    )


def validation_failed(conn_id: str, error: ValidationError) -> SettingsError:
    """A pydantic error as ours: which field of which connection, never its value."""
    return SettingsError(
        f"connection {conn_id!r} is incomplete or wrong",
        seen=wrong_fields(error),
        next_step="correct the fields in Airflow under Admin, Connections",
    )


def _extra_of(connection: Connection) -> dict[str, Any]:
    # not `extra_dejson`: that one takes extras that are no JSON for empty ones
    try:
        extra = json.loads(connection.extra or "{}")
    except ValueError as error:
        extra = str(error)
    if not isinstance(extra, dict):
        raise SettingsError(
            f"the extra of connection {connection.conn_id!r} is not a JSON object",
            next_step="correct it in Airflow under Admin, Connections",
        )
    return cast("dict[str, Any]", extra)


def _plain(form: Form, name: str, value: Any) -> Any:
    """A form's object field may hold its JSON as text (connections from URIs do)."""
    if form.extras[name].kind == "object" and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
