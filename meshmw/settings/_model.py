"""`Settings`: the declared fields, read from arguments, `MESHMW_*`, the standard variables and the defaults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource

from meshmw._notices import LOGGER, escaped, quoted
from meshmw._policy.words import hint, listed
from meshmw.errors import SettingsError
from meshmw.settings._schema import ANY_CASE, Fields, as_text, is_none
from meshmw.settings._standard import VARIABLES, Standard, StandardSource, is_blank

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

# Of the values at fault in one list, so many are shown.
_SHOWN: Final = 3


class Settings(Fields):
    """Holds everything that a user may choose, frozen.

    An argument beats a `MESHMW_*` variable, which beats the standard `OTEL_*` variable for the same thing, which beats
    the default. An empty variable counts as not set. Lists are comma-separated in variables; the word `none` alone is
    the empty list. Words are exact in arguments; variables may spell them in any case.

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
                errors = error.errors()
                at_fault = {str(each["loc"][0]) for each in errors if each["loc"]}
                names = [name for name in fields if name in at_fault]
                raise SettingsError(faults_of(errors, fields, values, prefix), names) from None

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
            VariableSource(settings_cls),
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
        filled = VariableSource(cls).env_vars
        own = {name: f"{prefix}{name}".upper() for name in cls.model_fields if f"{prefix}{name}".lower() in filled}
        values = {name: filled[variable.lower()] for name, variable in own.items()}
        standard = Standard(os.environ, values).read()  # noqa: TID251
        return own | {name: variable for name, (_, variable) in standard.items()}


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """Documents one setting, as docs/settings.md and `meshmw settings` show it.

    Attributes:
        name: The argument of `Settings`.
        variable: The variable that holds it.
        standard: The standard variables that are read when `variable` is not set.
        default: The default as a text, empty where there is none.
        takes: The values that it takes.
        description: What it does, in one sentence.
    """

    name: str
    variable: str
    standard: tuple[str, ...]
    default: str
    takes: str
    description: str


class VariableSource(EnvSettingsSource):
    """Reads the `MESHMW_*` variables: those that hold something, and words in any case."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        # The specification calls an empty variable unset; templates also leave blanks and lone commas behind.
        return {name: value for name, value in super()._load_env_vars().items() if value and not is_blank(value)}

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        """Return a variable's value, with its words in lower case."""
        is_word = ANY_CASE in field.metadata
        is_list = NoDecode in field.metadata
        if isinstance(value, str) and (is_word or (is_list and is_none(value))):
            value = value.strip().lower()
        return super().prepare_field_value(field_name, field, value, value_is_complex)


def takes(field: FieldInfo) -> str:
    """Return the values that a field takes, as a sentence names them."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "takes" in extra:
        return str(extra["takes"])
    words = words_of(field.annotation)
    if get_origin(field.annotation) is tuple:
        return f"a list of {', '.join(words)}; or none"
    return listed(words) if words else str(field.annotation)


def words_of(annotation: object) -> tuple[str, ...]:
    """Return the words that a value, or an item of a list, may be; none where it is something else."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for each in get_args(annotation) for word in words_of(each))


def faults_of(
    errors: Iterable[ErrorDetails],
    fields: Mapping[str, FieldInfo],
    arguments: Mapping[str, Any],
    prefix: str,
) -> list[str]:
    """Return one line for each field at fault, in the order of the fields, unknown arguments last.

    Args:
        errors: What pydantic found.
        fields: The model's fields by name.
        arguments: What came as an argument; whatever else is at fault came from the environment.
        prefix: The prefix of the variables' names.
    """
    by_field: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_field.setdefault(str(error["loc"][0]) if error["loc"] else "", []).append(error)
    lines = [_fault(name, by_field[name], fields[name], arguments, prefix) for name in fields if name in by_field]
    unknown = [name for name in by_field if name not in fields]
    return lines + [_unknown(name, by_field[name], fields) for name in unknown]


def _fault(name: str, errors: list[ErrorDetails], field: FieldInfo, arguments: Mapping[str, Any], prefix: str) -> str:
    where = f"argument {name}" if name in arguments else f"{prefix}{name}".upper()
    # A field of two types has two errors for one value.
    held = list(dict.fromkeys(quoted(error["input"]) for error in errors))
    more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    hints = (hint(str(error["input"]), words_of(field.annotation)) for error in errors)
    return f"{where} holds {', '.join(held[:_SHOWN])}{more}; it takes {takes(field)}{next(filter(None, hints), '')}"


def _unknown(name: str, errors: list[ErrorDetails], fields: Iterable[str]) -> str:
    if errors[0]["type"] == "extra_forbidden":
        return f"argument {escaped(name)} is no setting{hint(name, fields)}"
    return errors[0]["msg"]


def warn_unknown_variables(names: Iterable[str], fields: Iterable[str], prefix: str) -> None:
    """Warn of every variable that bears the prefix and is no setting, which is most often a misspelt one."""
    known = {field.upper() for field in fields}
    for name in names:
        rest = name.upper().removeprefix(prefix.upper())
        if rest != name.upper() and rest not in known:
            LOGGER.warning("%s is no setting and is ignored%s", escaped(name), hint(rest, known, prefix))
