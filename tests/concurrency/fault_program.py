"""A program whose process pools meet every fault; prints one line of JSON. Argument: the start method.

It imports little: each worker of a pool imports it again, those of the standard executor too.
"""

import concurrent.futures
import json
import multiprocessing
import os
import signal
import sys
import threading
import time

HEADERS = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "baggage": "user=7;secret"}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail(text):
    raise ValueError(text)


def faults(context):
    """Return what each fault comes to, as the standard executor and as ours have it."""
    from opentelemetry import propagate
    from opentelemetry.context import get_current

    import meshmw
    from meshmw._context.current import Current
    from meshmw.concurrency import ProcessPoolExecutor

    meshmw.configure(meshmw.Settings(service_name="program", exporter="none"))
    with Current(propagate.extract(HEADERS)):
        outcomes = [
            [outcome(fault, kind, context) for kind in (concurrent.futures.ProcessPoolExecutor, ProcessPoolExecutor)]
            for fault in (
                raises,
                unpicklable,
                unpicklable_result,
                dies,
                bad_initializer,
                no_initializer,
                after_shutdown,
                cancelled,
            )
        ]
    assert get_current() == {}
    return outcomes


def outcome(fault, kind, context):
    try:
        return f"{fault.__name__}: {fault(kind, context)}"
    except Exception as error:
        return f"{fault.__name__}: {type(error).__name__}: {error}"


def raises(kind, context):
    with kind(1, context) as executor:
        error = executor.submit(fail, "from the task").exception(60)
        again = executor.submit(abs, -1).result(60)
        return type(error).__name__, str(error), type(error.__cause__).__name__, again


def unpicklable(kind, context):
    with kind(1, context) as executor:
        error = executor.submit(lambda: None).exception(60)
        return type(error).__name__, "lambda" in str(error), executor.submit(abs, -1).result(60)


def unpicklable_result(kind, context):
    with kind(1, context) as executor:
        return type(executor.submit(threading.Lock).exception(60)).__name__, executor.submit(abs, -1).result(60)


def dies(kind, context):
    with kind(1, context) as executor:
        return executor.submit(die).result(60)


def bad_initializer(kind, context):
    with kind(1, context, fail, ("in the initializer",)) as executor:
        return executor.submit(abs, -1).result(60)


def no_initializer(kind, context):
    return kind(1, context, "text")


def after_shutdown(kind, context):
    executor = kind(1, context)
    executor.shutdown()
    return executor.submit(abs, -1)


def cancelled(kind, context):
    with kind(1, context) as executor:
        first = executor.submit(abs, -1)
        while not (first.running() or first.done()):  # what nobody has taken is cancelled as well
            time.sleep(0.001)
        waiting = [executor.submit(time.sleep, 0.05) for _ in range(50)]
        executor.shutdown(wait=True, cancel_futures=True)
        return first.result(60), any(future.cancelled() for future in waiting)


if __name__ == "__main__":
    print(json.dumps(faults(multiprocessing.get_context(sys.argv[1]))))
