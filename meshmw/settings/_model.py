"""`Settings`: the declared fields, read from arguments, `MESHMW_*`, the standard variables and the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, FrozenInstanceError, fields
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from meshmw._notices import LOGGER, escaped, quoted
from meshmw._policy.words import hint
from meshmw.errors import SettingsError
from meshmw.settings._schema import Fields
from meshmw.settings._standard import VARIABLES, Standard, is_blank, warn
from meshmw.settings._values import Kind, UnusableItemsError, as_text, is_none

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

    env_prefix: ClassVar[str] = "MESHMW_"

    def __init_subclass__(cls, *, env_prefix: str | None = None) -> None:
        """Read the variables of a subclass under a prefix of its own, if it names one."""
        super().__init_subclass__()
        if env_prefix is not None:
            cls.env_prefix = env_prefix

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse it, for a misspelt name too."""
        raise FrozenInstanceError(f"cannot assign to {quoted(name)}")

    def __delattr__(self, name: str) -> None:
        """Refuse it."""
        raise FrozenInstanceError(f"cannot delete {quoted(name)}")

    # Type checkers keep the signature that they derive from the fields.
    if TYPE_CHECKING:
        ...
    else:
        __signature__ = signature(Fields)

        def __init__(self, **values: Any) -> None:
            own = variables_of(type(self))
            given = {name: value for name, (_, value) in own.items()} | values
            standard = Standard(os.environ, given)  # noqa: TID251
            found = {name: value for name, (value, _) in standard.read().items()}
            warn(standard)
            # Not one by one: a frozen dataclass refuses that.
            self.__dict__.update(read(type(self), found | given, values))
            self.__dict__["_given"] = frozenset(found | given)

    @property
    def given(self) -> frozenset[str]:
        """Return the settings that an argument or a variable has decided."""
        given: frozenset[str] = self.__dict__["_given"]
        return given

    @classmethod
    def documentation(cls) -> tuple[SettingDoc, ...]:
        """Return one entry for each setting, in the order in which they are declared."""
        return tuple(
            SettingDoc(
                name=each.name,
                variable=variable_of(each.name, cls.env_prefix),
                standard=VARIABLES.get(each.name, ()),
                default=as_text(each.default),
                takes=kind_of(each).takes,
                description=each.metadata["description"],
            )
            for each in fields(cls)
        )

    @classmethod
    def origins(cls) -> dict[str, str]:
        """Return, for each setting that the environment decides, the variable that holds it."""
        own = variables_of(cls, say_unknown=False)
        standard = Standard(os.environ, {name: value for name, (_, value) in own.items()}).read()  # noqa: TID251
        return {name: variable for name, (variable, _) in own.items()} | {
            name: variable for name, (_, variable) in standard.items()
        }


class SettingDoc(NamedTuple):
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


def variable_of(name: str, prefix: str) -> str:
    """Return the variable that holds a setting."""
    return f"{prefix}{name}".upper()


def kind_of(setting: Field[Any]) -> Kind:
    """Return what a setting takes."""
    kind: Kind = setting.metadata["kind"]
    return kind


def variables_of(cls: type[Settings], *, say_unknown: bool = True) -> dict[str, tuple[str, str]]:
    """Return, by setting, its own variable and what that holds, words in lower case; none that is blank.

    Args:
        cls: The settings.
        say_unknown: Whether to warn of every variable that bears the prefix and is no setting, which is most often a
            misspelt one.
    """
    kinds = {variable_of(each.name, cls.env_prefix): (each.name, kind_of(each)) for each in fields(cls)}
    found = {}
    prefix = cls.env_prefix.upper()
    for name, value in os.environ.items():  # noqa: TID251
        variable = name.upper()
        if variable in kinds:
            # The specification calls an empty variable unset; templates also leave blanks and lone commas behind.
            if not is_blank(value):
                setting, kind = kinds[variable]
                is_word = kind.in_any_case or (kind.is_list and is_none(value))
                found[setting] = variable, value.strip().lower() if is_word else value
        elif say_unknown and variable.startswith(prefix):
            meant = hint(variable.removeprefix(prefix), [known.removeprefix(prefix) for known in kinds], cls.env_prefix)
            LOGGER.warning("%s is no setting and is ignored%s", escaped(name), meant)
    return found


def read(cls: type[Settings], given: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, object]:
    """Return the value of every setting.

    Args:
        cls: The settings.
        given: What arguments and variables hold.
        arguments: What came as an argument; whatever else is given came from the environment.

    Raises:
        SettingsError: Some of it cannot be used. It has one line for each setting at fault, in their order, and unknown
            arguments last.
    """
    values: dict[str, object] = {}
    faults: dict[str, str] = {}
    for each in fields(cls):
        name = each.name
        values[name] = each.default
        if name in given:
            try:
                values[name] = kind_of(each).read(given[name])
            except ValueError as error:
                where = f"argument {name}" if name in arguments else variable_of(name, cls.env_prefix)
                faults[name] = f"{where} {_fault(given[name], error, kind_of(each))}"
    unknown = [f"argument {escaped(name)} is no setting{hint(name, values)}" for name in given if name not in values]
    if faults or unknown:
        raise SettingsError([*faults.values(), *unknown], list(faults))
    return values


def _fault(value: object, error: ValueError, kind: Kind) -> str:
    items = error.items if isinstance(error, UnusableItemsError) else [value]
    held = list(dict.fromkeys(map(quoted, items)))
    more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    hints = (hint(str(item), kind.words) for item in items)
    return f"holds {', '.join(held[:_SHOWN])}{more}; it takes {kind.takes}{next(filter(None, hints), '')}"
