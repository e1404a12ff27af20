"""`Settings`: one frozen model for everything that a user may choose."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from meshmw.errors import SettingsError
from meshmw.settings.documentation import SettingDoc, as_text
from meshmw.settings.faults import faults_of, takes, warn_unknown_variables
from meshmw.settings.fields import Fields
from meshmw.settings.standard import VARIABLES, Standard, StandardSource


class Settings(Fields):
    """Holds everything that a user may choose, frozen.

    An argument beats a `MESHMW_*` variable, which beats the standard `OTEL_*` variable for the same thing, which beats
    the default. An empty variable counts as not set. Lists are comma-separated in variables; the word `none` alone is
    the empty list.

    Raises:
        SettingsError: Some values cannot be used; it names all of them.
    """

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
