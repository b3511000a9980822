"""A check of the issuer, for `python cli.py doctor`."""

from src.core.config import Settings
from src.doctor import CheckError


async def check_issuer(settings: Settings) -> str | None:
    if settings.OIDC_ISSUER is None:
        return None
    from src.oidc.documents import IssuerError, fetch, open_client  # noqa: PLC0415 - loaded if used

    async with open_client() as client:
        try:
            documents = await fetch(client, settings.OIDC_ISSUER)
        except IssuerError as error:
            raise CheckError(error, "Correct OIDC_ISSUER, or let this machine connect.") from error
    return f"{settings.OIDC_ISSUER}, {len(documents.keys)} keys."


CHECKS = {"issuer": check_issuer}
