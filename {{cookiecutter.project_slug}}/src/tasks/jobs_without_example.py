"""Your background tasks. docs/tasks.md shows how to add one."""
