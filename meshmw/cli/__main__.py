"""`python -m meshmw.cli`: the same command where the script is not on the PATH."""

from __future__ import annotations

import sys

from meshmw.cli import main

sys.exit(main())
