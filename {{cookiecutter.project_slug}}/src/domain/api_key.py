from src.domain.errors import ConflictError, NotFoundError


class ApiKeyNotFoundError(NotFoundError):
    message = "There is no active key with the name or ID {id}."


class ApiKeyNameTakenError(ConflictError):
    code = "api-key-name-taken"
    title = "Name in use"
    message = "A key with the name {name} exists. Revoke it, or rotate it."


class ApiKeyExpiredError(ConflictError):
    code = "api-key-expired"
    title = "Expired"
    message = "The key {name} has expired. Pass a new expiry."


class ApiKeyInRotationError(ConflictError):
    """A second rotation would end the grace period of a secret that programs still use."""

    code = "api-key-in-rotation"
    title = "Rotation in progress"
    message = "The previous secret of {name} is valid until {time}. Wait, or pass no grace period."
