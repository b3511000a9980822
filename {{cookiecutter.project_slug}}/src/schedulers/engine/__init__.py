"""Leader election, claimed ticks and catch-up. You do not need to change this package."""
