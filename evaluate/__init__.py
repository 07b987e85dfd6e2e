"""The programs that measure: protocols, cases, features, metrics, probes, learning curves; never imported by the Hub files."""

from .. import train  # noqa: F401 - registers the Auto classes, and says where the extra [train] is missing
