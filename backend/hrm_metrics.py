"""The dashboard's `hrm_metrics`: how deep, how thriftily and how fast the model thinks just now."""

from typing import Any, Final, Literal

from actors.messages import Decision, Heartbeat
from actors.policies import MonitoringSettings
from daemon.thinking_metrics import Thoughts

WINDOW: Final = 100  # thoughts
_MB_PER_MIB: Final = 1.048576
Status = Literal["ok", "warning", "critical"]


def hrm_metrics(
    thoughts: Thoughts,
    decision: Decision,
    beat: Heartbeat | None,
    limits: MonitoringSettings,
) -> dict[str, Any]:
    """Return the message; `decision` is the last thought, `beat` that of the reasoning actor."""
    window = thoughts.metrics()
    latency_ms = decision.elapsed_us / 1000
    memory_mb = beat.rss_mib * _MB_PER_MIB if beat is not None and beat.rss_mib else None
    return {
        "type": "hrm_metrics",
        "instrument": decision.instrument,
        "hierarchical_efficiency": round(window.computation_efficiency, 4),
        "computation_depth": round(window.avg_reasoning_depth, 2),
        "convergence_stability": round(window.hierarchical_convergence, 4),
        "inference_performance": {
            "latency_ms": round(latency_ms, 3),
            "memory_mb": None if memory_mb is None else round(memory_mb, 1),
            "status": _status(latency_ms, memory_mb or 0.0, limits),
        },
        "adaptive_reasoning": {
            "market_complexity": decision.market_complexity,
            "reasoning_depth": decision.reasoning_depth,
            "efficiency_score": round(thoughts.saved(decision), 4),
        },
    }


def _status(latency_ms: float, memory_mb: float, limits: MonitoringSettings) -> Status:
    """Return the worse of latency and memory, by the limits that alerts go by."""
    memory_gb = memory_mb / 1000
    if latency_ms > limits.latency_critical_ms or memory_gb > limits.memory_critical_gb:
        return "critical"
    if latency_ms > limits.latency_warning_ms or memory_gb > limits.memory_warning_gb:
        return "warning"
    return "ok"
