"""Layer swapping at the speed of the bus: plain torch, no ComfyUI.

    session = Session(blocks, device="cuda", budget=6 << 30)
    session.attach()            # or: add_object_patch("….blocks.3.forward", session.wrap(3))
    model(x)                    # each block finds its weights on the device
    print(session.report().to_json())
    session.close()             # the blocks are CPU modules again

A layer's tensors live once on the host, packed into one pinned buffer a layer (`HostStore`). Some layers stay on
the device (residents, chosen by `plan`), the others come through a ring of two to four buffers (`SlotPool`), copied
on a stream of their own while earlier layers compute (`Scheduler`). See the modules for the why.
"""

from __future__ import annotations

from .errors import (
    BudgetError,
    CopyError,
    DglsError,
    GradientError,
    LayerError,
    OutOfDeviceMemoryError,
    PlanError,
    StateError,
)
from .pins import PinBudget
from .plan import Plan
from .policy import Auto, Evenly, FirstLast, Indices, Policy
from .report import LayerReport, Metrics, Report, Span
from .session import Mode, Session, choose_mode

__all__ = [
    "Auto",
    "BudgetError",
    "CopyError",
    "DglsError",
    "Evenly",
    "FirstLast",
    "GradientError",
    "Indices",
    "LayerError",
    "LayerReport",
    "Metrics",
    "Mode",
    "OutOfDeviceMemoryError",
    "PinBudget",
    "Plan",
    "PlanError",
    "Policy",
    "Report",
    "Session",
    "Span",
    "StateError",
    "choose_mode",
]
