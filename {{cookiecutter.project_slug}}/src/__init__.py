"""What every process needs before its first import of this package."""

import gc
import sys

# By default, Python looks for cycles after 700 new objects: a seventh of the start, for nothing.
gc.set_threshold(20_000, 10, 20)

# For tracebacks that this service does not use, structlog would import Rich and Pygments: 80 modules.
if "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # an import raises ImportError
    import structlog as structlog

    del sys.modules["rich"]
