"""The programs that prepare scans, pretrain and fine-tune; never imported by the Hub files."""

import sys
from types import TracebackType

from .. import CTFMModel  # noqa: F401 - registers the Auto classes, by which processors find their parts


def _name_the_extra(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "ctfm":
        print(
            f'\nctfm: "{error.name}" is not installed. Programs of ctfm.train need the extra [train], and ctfm is not on PyPI: '
            'run pip install ".[train]" in the cloned folder.',
            file=sys.stderr,
        )


# sys.argv[0] is "-m" while Python imports the packages above a program: `python -m ctfm.train.pretrain`. Nothing is checked
# ahead.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _name_the_extra
