from typing import Annotated

from pydantic import StringConstraints

# Any text that PostgreSQL can store: without NUL.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
