"""Counters of a server in Prometheus' text format."""

import threading
from collections import defaultdict
from collections.abc import Callable

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds."""
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, histograms of seconds and gauges that are asked when the page is made; safe among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, str] = {}
        self._counters: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, tuple[list[int], list[float]]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}

    def counter(self, name: str, text: str) -> None:
        self._help[name], self._counters[name] = text, defaultdict(float)

    def histogram(self, name: str, text: str) -> None:
        self._help[name], self._histograms[name] = text, ([0] * (len(BUCKETS) + 1), [0.0])

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        self._help[name], self._gauges[name] = text, value

    def add(self, counter: str, value: float = 1.0, **labels: str) -> None:
        """Count something."""
        with self._lock:
            self._counters[counter][tuple(sorted(labels.items()))] += value

    def observe(self, histogram: str, seconds: float) -> None:
        """Note a duration."""
        with self._lock:
            counts, total = self._histograms[histogram]
            counts[next((i for i, edge in enumerate(BUCKETS) if seconds <= edge), len(BUCKETS))] += 1
            total[0] += seconds

    def value(self, counter: str, **labels: str) -> float:
        """What a counter has come to."""
        with self._lock:
            return self._counters[counter].get(tuple(sorted(labels.items())), 0.0)

    def page(self) -> str:
        """Everything, version 0.0.4 of the text format."""
        lines: list[str] = []
        with self._lock:
            for name, rows in self._counters.items():
                lines += [f"# HELP {name} {self._help[name]}", f"# TYPE {name} counter"]
                lines += [f"{name}{_braces(labels)} {value:.12g}" for labels, value in sorted(rows.items())]
            for name, (counts, total) in self._histograms.items():
                lines += [f"# HELP {name} {self._help[name]}", f"# TYPE {name} histogram"]
                below = 0
                for edge, count in zip([*map(str, BUCKETS), "+Inf"], counts, strict=True):
                    below += count
                    lines.append(f'{name}_bucket{{le="{edge}"}} {below}')
                lines += [f"{name}_sum {total[0]:.6f}", f"{name}_count {below}"]
        for name, ask in self._gauges.items():
            lines += [f"# HELP {name} {self._help[name]}", f"# TYPE {name} gauge", f"{name} {ask():.12g}"]
        return "\n".join(lines) + "\n"


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""


def server_metrics() -> Metrics:
    """The counters of a vadis server, all at zero."""
    metrics = Metrics()
    metrics.counter("vadis_requests_total", "HTTP requests by path, method and status.")
    metrics.counter("vadis_refused_total", "What was refused, by reason.")
    metrics.counter("vadis_streams_opened_total", "WebSocket streams opened.")
    metrics.counter("vadis_streams_closed_total", "WebSocket streams closed, by reason.")
    metrics.counter("vadis_failures_total", "Failures of a whole model, and of single streams.")
    metrics.counter("vadis_cancelled_total", "Motions that were given up because their client had left.")
    metrics.counter("vadis_texts_total", "Texts that clients sent to streams.")
    metrics.counter("vadis_latents_total", "Latents made for streams.")
    metrics.counter("vadis_frames_total", "Frames made for streams.")
    metrics.counter("vadis_late_seconds_total", "By how much streams fell behind real time.")
    metrics.histogram("vadis_latent_seconds", "Time of one step of the model, for all streams that were due.")
    metrics.histogram("vadis_text_seconds", "Time from a text's arrival to its vector.")
    metrics.histogram("vadis_generate_seconds", "Time of POST /generate, waiting included.")
    metrics.gauge("process_resident_memory_bytes", "Memory of the process.", resident_bytes)
    return metrics


def resident_bytes() -> float:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0.0
    import resource

    return float(pages * resource.getpagesize())
