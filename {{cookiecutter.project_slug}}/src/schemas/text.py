from typing import Annotated

from pydantic import StringConstraints

# Text without NUL characters, which PostgreSQL cannot store.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
