"""The programs that publish and convert weights: records, cards, code beside weights, staging, SPECTRE."""

from .. import train  # noqa: F401 - registers the Auto classes, and names the extra where a library is missing
