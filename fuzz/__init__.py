"""Fuzzing of what reads strangers' files: scans, and the documents of the report checker. `make fuzz SECONDS=60`."""
