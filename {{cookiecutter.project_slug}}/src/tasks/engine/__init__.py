"""Brokers, middleware and relay. You do not need to change this package."""
