from prometheus_client import Counter, Gauge, Histogram

RUNS = Counter(
    "scheduler_runs_total", "Ticks that were due, by what became of them.", ["job", "outcome"]
)
DURATION = Histogram("scheduler_run_duration_seconds", "How long a job ran.", ["job"])
LEADER = Gauge(
    "scheduler_leader", "1 while this process runs the jobs.", multiprocess_mode="livemax"
)
