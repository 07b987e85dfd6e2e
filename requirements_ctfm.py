"""Imported before anything that an older transformers lacks, so that its age is named and not the name it lacks.

The Hub loader copies these files without installing anything: it is here, and not at installation, that versions meet.
"""

from transformers.utils.versions import require_version

TRANSFORMERS = "transformers>=5.23"  # as pyproject.toml has it

require_version(TRANSFORMERS, f'To get it: pip install --upgrade "{TRANSFORMERS}"')
