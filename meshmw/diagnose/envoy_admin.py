"""Asks an Envoy's administration interface, or a file that holds its answer.

Knows HTTP and files. Must not know what the answers mean. Only GET is sent: the interface can also stop a proxy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import httpx

from meshmw.diagnose.config_dump import read_proxy
from meshmw.diagnose.escaping import without_secrets
from meshmw.diagnose.proxy_config import ProxyConfig
from meshmw.errors import MeshmwError

# What reading JSON of any other shape raises.
_NOT_THAT: Final = (ValueError, AttributeError, LookupError, TypeError, ArithmeticError, RecursionError)


class AdminError(MeshmwError):
    """Says in one line why a proxy's configuration cannot be read."""


def ask_proxy(url: str, *, timeout: float = 5.0) -> ProxyConfig:
    """Read a proxy's configuration from its administration interface.

    Args:
        url: Such as `http://127.0.0.1:15000`, which is Istio's; a missing `http://` is added.
        timeout: Seconds for each answer.

    Raises:
        AdminError: It does not answer, or with something else.
    """
    base = (url if "://" in url else f"http://{url}").rstrip("/")
    where = without_secrets(base)
    try:
        with httpx.Client(timeout=timeout, trust_env=False) as client:
            dump, info, clusters = (
                client.get(f"{base}{path}").raise_for_status().json()
                for path in ("/config_dump", "/server_info", "/clusters?format=json")
            )
            return read_proxy(where, dump, info, clusters)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise AdminError(f"{where} cannot be asked: {str(error) or type(error).__name__}") from error
    except _NOT_THAT as error:
        raise AdminError(f"{where} is no Envoy administration interface ({type(error).__name__})") from error


def read_dump(path: Path) -> ProxyConfig:
    """Read a file that holds what `/config_dump` answered, as curl or `istioctl proxy-config all POD -o json` write it.

    Raises:
        AdminError: It cannot be read, or holds something else.
    """
    try:
        document: Any = json.loads(path.read_bytes())
        return read_proxy(str(path), document)
    except OSError as error:
        raise AdminError(f"{path}: {error.strerror or error}") from error
    except _NOT_THAT as error:
        raise AdminError(f"{path} holds no config_dump ({type(error).__name__})") from error
