"""Every error mmbuild raises on purpose, grouped by what a caller would do about it.

MMBuildError
├── UserError        the input is wrong: say where, why and how to fix it        (exit 2)
├── QuotaStop        a budget or quota is spent: progress is kept, resume later  (exit 3)
├── SourceError      a source did not answer; ``transient`` says whether asking again can help
└── IntegrityError   stored bytes are not what the commit record says

A source's refusal is one of five: ask again (SourceError, transient), ask for less (SourceError, too_large), a wrong
request and an account or project that is not set up (UserError), a quota that only time refills (QuotaStop).
"""

from __future__ import annotations


class MMBuildError(Exception):
    """Root of the tree; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UserError(MMBuildError):
    """The user's input is wrong; the text is one line: ``where: what is wrong; how to fix it``."""

    exit_code = 2

    def __init__(self, message: str, where: str = "", fix: str = "") -> None:
        self.message, self.where, self.fix = message, where, fix
        super().__init__(message, where, fix)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; {self.fix}" if self.fix else text


class QuotaStop(MMBuildError):
    """A budget or quota ended the work cleanly; what is stored stays stored and the build resumes."""

    exit_code = 3


class SourceError(MMBuildError):
    """A source could not answer.

    transient: asking the same again later may work (429, 5xx, timeouts, broken bodies).
    too_large: the request must be split before it can be answered.
    """

    def __init__(self, message: str, *, transient: bool = False, too_large: bool = False) -> None:
        self.message, self.transient, self.too_large = message, transient, too_large
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_source_error, (self.message, self.transient, self.too_large))


def _source_error(message: str, transient: bool, too_large: bool) -> SourceError:
    """Rebuild a SourceError after pickling (Dask sends errors between processes)."""
    return SourceError(message, transient=transient, too_large=too_large)


class IntegrityError(MMBuildError):
    """Stored bytes differ from their commit record."""
