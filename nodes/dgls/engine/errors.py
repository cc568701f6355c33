"""What can go wrong, one class a kind; every message says what happened and what would help."""

from __future__ import annotations


class DglsError(Exception):
    """Any failure of this engine that its user can understand."""


class LayerError(DglsError, ValueError):
    """The layers given cannot be worked with: none at all, the same one twice, one on the meta device."""


class PlanError(DglsError, ValueError):
    """A policy that names layers which do not exist."""


class BudgetError(DglsError):
    """The budget does not hold even the slots that one layer needs; `needed` bytes would."""

    def __init__(self, message: str, *, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class OutOfDeviceMemoryError(DglsError):
    """The device refused memory, and giving up residents did not help; `needed` bytes were asked for."""

    def __init__(self, message: str, *, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class CopyError(DglsError):
    """A copy to the device failed; the pass is lost, the session is whole again."""


class GradientError(DglsError):
    """A backward pass was asked for: its weights would be overwritten before it runs."""


class StateError(DglsError):
    """A call out of its order: attached twice, used after close."""
