"""The scheduler's engine: leader election, claimed ticks, catch-up. You need not change it."""
