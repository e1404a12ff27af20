"""What a user may choose, read once from arguments and the environment.

This package alone reads the environment. It knows no framework, and of OpenTelemetry only the names of its variables.
"""

from __future__ import annotations

from meshmw.settings._model import SettingDoc, Settings
from meshmw.settings._otlp import Held as Held
from meshmw.settings._otlp import OtlpOptions as OtlpOptions
from meshmw.settings._otlp import Signal as Signal
from meshmw.settings._otlp import export_seconds as export_seconds
from meshmw.settings._otlp import exporting as exporting
from meshmw.settings._otlp import is_insecure as is_insecure

# For the package's own use.
from meshmw.settings._schema import MOST_BYTES as MOST_BYTES
from meshmw.settings._schema import MOST_MEMBERS as MOST_MEMBERS
from meshmw.settings._sdk import EXEMPLAR_VARIABLES as EXEMPLAR_VARIABLES
from meshmw.settings._sdk import IMPORT_VARIABLES as IMPORT_VARIABLES
from meshmw.settings._sdk import LARGEST as LARGEST
from meshmw.settings._sdk import LIMIT_VARIABLES as LIMIT_VARIABLES
from meshmw.settings._sdk import METRIC_VARIABLES as METRIC_VARIABLES
from meshmw.settings._sdk import PROCESSOR_VARIABLES as PROCESSOR_VARIABLES
from meshmw.settings._sdk import RESOURCE_VARIABLES as RESOURCE_VARIABLES
from meshmw.settings._sdk import SAMPLER_VARIABLES as SAMPLER_VARIABLES
from meshmw.settings._sdk import SHARED_VARIABLES as SHARED_VARIABLES
from meshmw.settings._sdk import hidden as hidden
from meshmw.settings._sdk import named_in as named_in
from meshmw.settings._sdk import readable as readable
from meshmw.settings._standard import count_in as count_in
from meshmw.settings._standard import each_line_once as each_line_once
from meshmw.settings._standard import first_of as first_of
from meshmw.settings._standard import is_set as is_set
from meshmw.settings._standard import is_true as is_true
from meshmw.settings._standard import metrics_endpoint as metrics_endpoint
from meshmw.settings._standard import metrics_over_http as metrics_over_http
from meshmw.settings._standard import resource_attributes as resource_attributes
from meshmw.settings._standard import say as say
from meshmw.settings._standard import sdk_disabled as sdk_disabled
from meshmw.settings._values import as_text as as_text
from meshmw.settings._values import is_target as is_target

__all__ = ["SettingDoc", "Settings"]


def __dir__() -> list[str]:
    return sorted(__all__)
