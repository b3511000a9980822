"""Real servers for development and tests, started on demand. Production never imports this."""
