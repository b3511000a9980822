from prometheus_client import Counter, Gauge, Histogram

SENT = Counter("tasks_sent_total", "Messages that the relay has sent to the broker.")
PROCESSED = Counter(
    "tasks_processed_total",
    "Attempts: succeeded, retry if another one follows, or dead.",
    ["queue", "actor", "outcome"],
)
DURATION = Histogram("tasks_duration_seconds", "How long an attempt took.", ["queue", "actor"])
DELAY = Histogram(
    "tasks_delay_seconds",
    "From being sent, or due again, to being started.",
    ["queue", "actor"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 1800, 7200),
)
IN_PROGRESS = Gauge(
    "tasks_in_progress", "Attempts that run now.", ["queue"], multiprocess_mode="livesum"
)
