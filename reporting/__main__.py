"""`python -m ctfm.reporting FILE`: the same as `ctfm report-check FILE`."""

from .command import main

raise SystemExit(main())
