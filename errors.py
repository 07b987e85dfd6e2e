"""Errors about inputs other than scans, which `ctfm` says in one line and ends with exit code 2; those about scans are
`volume_scan_ctfm.VolumeError`s."""


class TableError(ValueError):
    """A table that cannot be used as it is; the message names the table, what is wrong with it, and the cure."""
