"""The principal of an access token."""

from src.core.config import Settings
from src.domain.principal import Principal, PrincipalKind
from src.oidc.errors import InvalidTokenError
from src.oidc.issuer import Issuer
from src.oidc.scopes import names_in, scopes_of
from src.oidc.tokens import ClaimsCheck, parse


class AccessTokens:
    """Finds the principal of an access token."""

    def __init__(self, settings: Settings, issuer: Issuer) -> None:
        self.issuer = issuer
        self._claims = ClaimsCheck(issuer.url, settings.OIDC_AUDIENCE)
        self._scopes_claims, self._scopes_map = settings.OIDC_SCOPES_CLAIM, settings.OIDC_SCOPES_MAP

    async def identify(self, text: str) -> Principal:
        """Raises InvalidTokenError, or IssuerUnavailableError if no keys are known yet."""
        token = parse(text)
        key = await self.issuer.find_key(token.key_id, token.algorithm)
        if key is None:
            raise InvalidTokenError("the issuer has no such key")
        claims = token.verify(key)
        self._claims.check(claims)
        names = names_in(claims, self._scopes_claims)
        return Principal(PrincipalKind.TOKEN, claims["sub"], scopes_of(names, self._scopes_map))
