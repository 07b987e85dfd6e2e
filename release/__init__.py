"""The programs that publish and convert weights: records, cards, code beside weights, staging, SPECTRE."""

from .. import train  # noqa: F401 - registers the Auto classes, and says where the extra [train] is missing
