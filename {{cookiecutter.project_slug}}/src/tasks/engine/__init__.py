"""The machinery of `src.tasks`: brokers, middleware, relay. Nothing here is yours to change."""
