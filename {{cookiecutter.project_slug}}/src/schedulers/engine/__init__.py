"""Leader election, claimed ticks and catch-up. You do not need to change this package."""

from src.schedulers.engine.apscheduler_patches import apply_patches

apply_patches()
