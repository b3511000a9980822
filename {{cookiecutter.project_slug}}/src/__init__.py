"""What every process needs before its first import of this package."""

import gc

# By default, Python looks for cycles after 700 new objects: a seventh of the start, for nothing.
gc.set_threshold(20_000, 10, 20)
