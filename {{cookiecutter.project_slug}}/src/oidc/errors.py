class InvalidTokenError(Exception):
    """The message is the reason, for the log. It contains nothing of the token."""


class IssuerUnavailableError(Exception):
    """No keys are known yet."""
