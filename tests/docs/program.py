"""Run the Python blocks of a page that belong together, in one namespace, as one program.

Reads JSON from standard input: a list of [file, line, code]. A traceback shows the line of the page.
"""

import ast
import asyncio
import contextlib
import contextvars
import inspect
import json
import sys


class Enough(Exception):
    """Raised by what a test puts into an endless loop: the block has shown what it was to show."""


def main() -> None:
    names = {"__name__": "__main__", "Enough": Enough}
    with asyncio.Runner() as runner:  # one loop for all blocks with `await`
        for path, line, code in json.load(sys.stdin):
            compiled = compile("\n" * (line - 1) + code, path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            with contextlib.suppress(Enough):
                if compiled.co_flags & inspect.CO_COROUTINE:
                    runner.run(asyncio.wait_for(eval(compiled, names), 60), context=contextvars.copy_context())
                else:
                    exec(compiled, names)


if __name__ == "__main__":
    main()
