"""The libraries of the extra [clinical], which commands of other extras load only where they are needed."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..installation import how_to_install


@contextmanager
def need_extra() -> Iterator[None]:
    """
    Raises:
        OSError: a library is not installed; it names the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "ctfm":
            raise
        raise OSError(
            f'"{error.name}" is not installed. It needs the extra [clinical]: run {how_to_install("clinical")}.'
        ) from error
