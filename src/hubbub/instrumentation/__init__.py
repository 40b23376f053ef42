"""What a hub tells those who measure it. docs/operations.md has the adapters for Prometheus and OpenTelemetry."""

from hubbub.instrumentation.instrumentation import (
    SILENT,
    Instrumentation,
    Line,
    Outcome,
    PoolUse,
)
from hubbub.models import ResyncReason

__all__ = ["SILENT", "Instrumentation", "Line", "Outcome", "PoolUse", "ResyncReason"]
