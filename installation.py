"""How this installation gets an extra; said wherever one is missing, so it imports nothing that may be missing itself."""

from pathlib import Path


def how_to_install(extra: str) -> str:
    """The command that adds an extra to this installation: in a clone where it lies, else from the index.

    Editable, because a copy of the code would leave checkpoints/default behind.
    """
    if (Path(__file__).parent / "pyproject.toml").is_file():  # which no wheel holds
        return f'pip install --editable ".[{extra}]" in the cloned folder'
    return f'pip install "ctfm[{extra}]"'
