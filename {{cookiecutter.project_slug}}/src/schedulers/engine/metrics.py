from prometheus_client import Counter, Gauge, Histogram

RUNS = Counter("scheduler_runs_total", "Ticks of jobs, by outcome.", ["job", "outcome"])
DURATION = Histogram("scheduler_run_duration_seconds", "Duration of a run.", ["job"])
LEADER = Gauge(
    "scheduler_leader", "1 while this process is the leader.", multiprocess_mode="livemax"
)
