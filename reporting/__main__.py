"""`python -m ctfm.reporting FILE`: the same as `ctfm report-check FILE`."""

from .check import main

raise SystemExit(main())
