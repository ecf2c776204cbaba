"""What ``/metrics`` tells, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts requests and images; nothing is shared with other servers of the process.

    Args:
      waiting: Tells how many images wait to be scored.
      active: Tells how many requests to score images are worked on.
    """

    def __init__(self, waiting: Callable[[], int], active: Callable[[], int]):
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "jaxad_requests", "Requests by method, route and status", ["method", "route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self.images = Counter(
            "jaxad_images", "Images by detector and decision", ["detector", "decision"], registry=self._registry
        )
        self.seconds = Histogram(
            "jaxad_request_seconds", "Seconds from the first byte of a request to the last of its answer", ["route"],
            registry=self._registry,
        )  # fmt: skip
        waits = Gauge("jaxad_images_waiting", "Images that wait to be scored", registry=self._registry)
        waits.set_function(waiting)
        works = Gauge("jaxad_requests_active", "Requests to score images that are worked on", registry=self._registry)
        works.set_function(active)

    def text(self) -> bytes:
        """All of it as text."""
        return generate_latest(self._registry)
