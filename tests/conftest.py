"""What every test gets: a clean environment, and a failure where a context outlives its test or a socket its file.

Also what a run gets: the order of its files, one folder for bytecode, an end for what hangs, and a collector that skips
what was imported.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from opentelemetry import context as otel_context

# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile("meshmw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# On demand: pytest tests/test_propagator_properties.py -k bytes --hypothesis-profile=million
settings.register_profile("million", settings.get_profile("meshmw"), max_examples=1_000_000)
settings.load_profile("meshmw")

# Their fixtures start one broker each for a whole run, in whichever folder the tests are that ask for it.
pytest_plugins = [f"tests.contracts.messaging.{name}_broker" for name in ("kafka", "rabbitmq", "redis")]


# A shell starts what it runs in the background deaf to Ctrl-C, and so would be every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take longest, the longest first: begun last, one of them would keep a single worker busy while the others
# are done.
_SLOW = (
    "concurrency/test_processes.py",
    "sample_apps/test_demo.py",
    "servers/test_exports.py",
    "matrix/",
    "docs/test_pages.py",
    "mesh/test_formats.py",
    "testing/test_mesh.py",
    "real/",
    "contracts/messaging/",
    "mesh/",
    "soak/",
    "tools/test_commands.py",
    "benchmarks/",
    "tools/",
    "test_nothing_is_patched.py",
    "servers/",
    "telemetry/",
    "testing/",
    "grpc/",
    "contracts/frameworks/",
    "sample_apps/",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep our order under `--dist loadfile`, which else begins with the files that have most tests.

    And let a worker that a hanging test has ended stay away: another would begin with the same test.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
        config.option.maxworkerrestart = config.option.maxworkerrestart or "0"
    if sys.dont_write_bytecode:
        _share_bytecode(config)
    # Nothing that is imported or collected is garbage, and looking for some takes a third of the time.
    gc.disable()


def _share_bytecode(config: pytest.Config) -> None:
    """Where Python may write no bytecode beside a source, let all processes of this run write it to one folder.

    Else each of the hundreds of programs that tests start compiles all that it imports, which takes longer than the
    rest of it. Workers of xdist inherit the folder, and leave it to the process that started them.
    """
    folder = tempfile.mkdtemp(prefix="meshmw-bytecode-")

    def remove() -> None:
        # Else what is imported or started from here on would make it again.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        shutil.rmtree(folder, ignore_errors=True)

    config.add_cleanup(remove)
    _link_compiled(folder)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = folder
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def _link_compiled(folder: str) -> None:
    """Let Python find in the folder what the installers have compiled: with such a folder it looks nowhere else."""
    for root in {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}:
        for place, folders, names in os.walk(root):
            # Thousands of files that nothing here imports, or that are a root of their own.
            folders[:] = [name for name in folders if name not in ("test", "tests", "idlelib", "site-packages")]
            if os.path.basename(place) != "__pycache__":
                continue
            here = f"{folder}{os.path.dirname(place)}"
            os.makedirs(here, exist_ok=True)
            for name in names:
                if name.endswith(f".{sys.implementation.cache_tag}.pyc") and not os.path.lexists(f"{here}/{name}"):
                    os.symlink(f"{place}/{name}", f"{here}/{name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    here = f"{os.path.dirname(__file__)}{os.sep}"

    def rank(item: pytest.Item) -> int:
        place = str(item.path).removeprefix(here)
        return next((number for number, slow in enumerate(_SLOW) if place.startswith(slow)), len(_SLOW))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Spare the collector all that was imported: it takes a quarter of a second to look through it, each time."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def no_forgotten_files() -> Iterator[None]:
    """A file that leaves a socket or a file to the collector fails, and not a stranger in which that happens to run."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the telemetry settings of the machine that it runs on."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "MESHMW_", "K8S_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_context_leaks() -> Iterator[None]:
    """A test that leaves a context attached fails, whatever it proved."""
    before = otel_context.get_current()
    yield
    assert otel_context.get_current() == before, "a context was attached and never detached"
