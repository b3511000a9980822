from typing import Annotated

from pydantic import StringConstraints

# What PostgreSQL's text can hold: any character but NUL.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
