"""The programs that pretrain, fine-tune, evaluate and convert; never imported by the Hub files."""

from .. import CTFMModel  # noqa: F401 - registers the Auto classes, by which processors find their parts
