"""How this installation gets an extra; said wherever one is missing, so it imports nothing that may be missing itself."""

import importlib.metadata


def how_to_install(extra: str) -> str:
    """The command that adds an extra to this installation: from the index where it came from one, else from the clone.

    Editable, because a copy of the code would leave checkpoints/default behind.
    """
    try:
        installed = importlib.metadata.distribution("ctfm")
    except importlib.metadata.PackageNotFoundError:  # run from a clone as it lies
        installed = None
    if installed is not None and installed.read_text("direct_url.json") is None:  # pip writes it for all but an index
        return f'pip install "{installed.name}[{extra}]"'
    return f'pip install --editable ".[{extra}]" in the cloned folder'
