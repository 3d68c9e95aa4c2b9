"""What a person is told when something is wrong: one line each, and the exit code of the whole program."""

from typing import ClassVar, NamedTuple


class Complaint(NamedTuple):
    """One thing that is wrong: where (a key or a path), what, and the way out."""

    where: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"error: {self.where}: {self.problem} — {self.remedy}"


class NormlabError(Exception):
    """An error that is the user's to mend, with one or several complaints; anything else that escapes is a bug.

    `NormlabError(where, problem, remedy)` holds one complaint, `NormlabError.of(complaints)` several.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        super().__init__(where, problem, remedy)
        self.complaints = [Complaint(where, problem, remedy)]

    @classmethod
    def of(cls, complaints: list[Complaint]) -> "NormlabError":
        error = cls(*complaints[0])
        error.complaints = list(complaints)
        return error

    def __str__(self) -> str:
        return "\n".join(str(complaint) for complaint in self.complaints)


class ConfigurationError(NormlabError):
    exit_code = 2


class DataError(NormlabError):
    exit_code = 3


class CheckpointError(NormlabError):
    exit_code = 4


class ResourceError(NormlabError):
    exit_code = 5


class NumericalError(NormlabError):
    exit_code = 6


class CollapseError(NumericalError):
    """The generator has collapsed, in a run that was told to stop then."""


class BusyError(NormlabError):
    exit_code = 7


class SweepError(NormlabError):
    exit_code = 8


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out: torch has an error for a GPU's, and any RuntimeError else."""
    signs = ("out of memory", "allocate memory", "enough memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


DONE = 0
TIME_LIMIT_REACHED = 75
INTERRUPTED = 130
TERMINATED = 143
