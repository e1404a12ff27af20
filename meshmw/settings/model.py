"""`Settings`: one frozen model for everything that a user may choose."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from meshmw.errors import SettingsError
from meshmw.settings.documentation import SettingDoc, as_text
from meshmw.settings.faults import faults_of, takes, warn_unknown_variables
from meshmw.settings.standard import VARIABLES, Standard, StandardSource
from meshmw.settings.values import (
    BaggageBytes,
    BaggageMembers,
    Endpoint,
    Exporter,
    Formats,
    HeaderNames,
    Paths,
    Policy,
    Ratio,
    Seconds,
    Text,
)


class Settings(BaseSettings):
    """Holds everything that a user may choose, frozen.

    An argument beats a `MESHMW_*` variable, which beats the standard `OTEL_*` variable for the same thing, which beats
    the default. An empty variable counts as not set. Lists are comma-separated in variables; the word `none` alone is
    the empty list.

    Raises:
        SettingsError: Some values cannot be used; it names all of them.
    """

    model_config = SettingsConfigDict(env_prefix="MESHMW_", frozen=True, extra="forbid")

    service_name: Text | None = Field(
        default=None,
        description="The name of this service in every trace.",
        json_schema_extra={"takes": "1 to 255 printable characters"},
    )
    service_version: Text | None = Field(
        default=None,
        description="The version of this service in every trace.",
        json_schema_extra={"takes": "1 to 255 printable characters"},
    )
    propagators: Formats = Field(
        default=("tracecontext", "baggage"),
        description="The header formats that are read and written; W3C trace context decides wherever it is listed.",
        json_schema_extra={"takes": "a list of tracecontext, baggage, b3, b3multi; or none"},
    )
    traceparent_policy: Policy = Field(
        default="strict",
        description="Whether only version 00 of traceparent is read (strict), or later versions too (w3c).",
        json_schema_extra={"takes": "strict or w3c"},
    )
    exclude: Paths = Field(
        default=(),
        description="The request paths that get no span: /live means it and all below it, a pattern the whole path.",
        json_schema_extra={"takes": "a list of paths that begin with /, or of patterns with * and ?"},
    )
    baggage_max_members: BaggageMembers = Field(
        default=64,
        description="The number of baggage members that are kept, in each direction.",
        json_schema_extra={"takes": "a number from 0 to 1024"},
    )
    baggage_max_bytes: BaggageBytes = Field(
        default=8192,
        description="The bytes of baggage that are kept, in each direction, all header lines together.",
        json_schema_extra={"takes": "a number from 0 to 61440"},
    )
    passthrough_headers: HeaderNames = Field(
        default=("x-request-id",),
        description="The request headers that go out again, unchanged, on outbound calls.",
        json_schema_extra={"takes": "a list of up to 32 header names, no trace header and none of HTTP's own; or none"},
    )
    exporter: Exporter = Field(
        default="otlp",
        description="Where spans go: OTLP over gRPC (otlp), OTLP over HTTP (otlp-http), standard output, or nowhere.",
        json_schema_extra={"takes": "otlp, otlp-http, console or none"},
    )
    endpoint: Endpoint | None = Field(
        default=None,
        description="The collector's address; otlp-http adds /v1/traces where it has no path.",
        json_schema_extra={"takes": "host:port or an http:// or https:// URL without credentials"},
    )
    sampling_ratio: Ratio | None = Field(
        default=None,
        description="The share of new traces that is recorded; a trace that a caller began follows the caller.",
        json_schema_extra={"takes": "a number from 0 to 1"},
    )
    warn_window: Seconds = Field(
        default=60.0,
        description="The seconds in which the same warning is not said again.",
        json_schema_extra={"takes": "a number of seconds from 0 to 86400"},
    )
    sdk_disabled: bool = Field(
        default=False,
        description="Whether to record no spans; headers are still passed on.",
        json_schema_extra={"takes": "true or false"},
    )

    # Type checkers keep the signature that they derive from the fields.
    if TYPE_CHECKING:
        ...
    else:

        def __init__(self, **values: Any) -> None:
            prefix = str(self.model_config["env_prefix"])
            fields = type(self).model_fields
            warn_unknown_variables(os.environ, fields, prefix)  # noqa: TID251
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise SettingsError(faults_of(error.errors(), fields, values, prefix)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the standard variables last, and no variable that is blank."""
        return (
            init_settings,
            _FilledVariables(settings_cls),
            dotenv_settings,
            file_secret_settings,
            StandardSource(settings_cls),
        )

    @classmethod
    def documentation(cls) -> tuple[SettingDoc, ...]:
        """Return one entry for each setting, in the order in which they are declared."""
        prefix = str(cls.model_config["env_prefix"])
        return tuple(
            SettingDoc(
                name=name,
                variable=f"{prefix}{name}".upper(),
                standard=VARIABLES.get(name, ()),
                default=as_text(field.default),
                takes=takes(field),
                description=field.description or "",
            )
            for name, field in cls.model_fields.items()
        )

    @classmethod
    def origins(cls) -> dict[str, str]:
        """Return, for each setting that the environment decides, the variable that holds it."""
        prefix = str(cls.model_config["env_prefix"])
        filled = _FilledVariables(cls).env_vars
        own = {name: f"{prefix}{name}".upper() for name in cls.model_fields if f"{prefix}{name}".lower() in filled}
        values = {name: filled[variable.lower()] for name, variable in own.items()}
        standard = Standard(os.environ, values).read()  # noqa: TID251
        return own | {name: variable for name, (_, variable) in standard.items()}


class _FilledVariables(EnvSettingsSource):
    # The specification calls an empty variable unset; templates also leave blanks and lone commas behind.
    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in super()._load_env_vars().items() if value and value.strip(" \t,")}
