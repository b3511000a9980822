"""What the cache tells Prometheus. Keys are never labels: there is no end to them."""

from prometheus_client import Counter

REQUESTS = Counter(
    "cache_requests_total",
    "Values asked for; the result is hit, miss, stale or bypass.",
    ["cache", "result"],
)
