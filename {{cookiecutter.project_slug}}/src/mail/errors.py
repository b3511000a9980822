class MailError(Exception):
    """The server did not accept the mail. Another attempt may succeed.

    The message contains no address, and no text of the server, which may repeat the address.
    """


class MailRefusedError(MailError):
    """This mail can never be sent, for example because the mailbox does not exist."""
