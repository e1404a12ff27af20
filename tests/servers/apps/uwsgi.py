"""Runs uWSGI with the arguments of this program, and has SIGTERM end it as other servers end.

What the wheel brings is no module that `python -m` could run.
"""

import sys

import pyuwsgi

pyuwsgi.run([*sys.argv[1:], "--hook-master-start", "unix_signal:15 gracefully_kill_them_all"])
