"""Scopes from the claims of providers."""

from typing import Any

import pytest

from src.core.config import load_settings
from src.domain.principal import ROLES, Role, Scope
from src.oidc.scopes import names_in, scopes_of
from tests.fixtures.environment import settings_error

ROLES_OF_ZITADEL = "urn:zitadel:iam:org:project:344374183645413380:roles"

KEYCLOAK = {
    "scope": "openid profile api.read",
    "realm_access": {"roles": ["admins", "offline_access"]},
    "resource_access": {"my.service": {"roles": ["editor"]}, "account": {"roles": ["view"]}},
}
AUTH0 = {
    "scope": "openid api.read",
    "permissions": ["api.read", "api.write"],
    "https://example.com/roles": ["admins"],
}
ENTRA_USER = {"scp": "api.read api.write", "ver": "2.0"}
ENTRA_PROGRAM = {"roles": ["api.read"], "ver": "2.0"}
OKTA = {"scp": ["api.read", "api.write"], "groups": ["Everyone", "admins"]}
ZITADEL = {ROLES_OF_ZITADEL: {"admins": {"344373908297744388": "example.localhost"}}}


@pytest.mark.parametrize(
    ("claims", "paths", "names"),
    [
        (KEYCLOAK, ["scope"], {"openid", "profile", "api.read"}),
        (KEYCLOAK, ["realm_access.roles"], {"admins", "offline_access"}),
        (KEYCLOAK, ["resource_access.my.service.roles"], {"editor"}),
        (AUTH0, ["permissions"], {"api.read", "api.write"}),
        (AUTH0, ["https://example.com/roles", "scope"], {"admins", "openid", "api.read"}),
        (ENTRA_USER, ["scp", "roles"], {"api.read", "api.write"}),
        (ENTRA_PROGRAM, ["scp", "roles"], {"api.read"}),
        (OKTA, ["scp", "groups"], {"api.read", "api.write", "Everyone", "admins"}),
        (ZITADEL, [ROLES_OF_ZITADEL], {"admins"}),
        (KEYCLOAK, ["scopes", "realm_access.groups", "scope.roles", "realm_access"], {"roles"}),
        ({"scope": [1, None, ["admins"], {"admins": 1}]}, ["scope"], set()),
        ({"scope": True}, ["scope"], set()),
    ],
)
def test_names_in_the_claims_of_providers(
    claims: dict[str, Any], paths: list[str], names: set[str]
) -> None:
    assert names_in(claims, paths) == names


def test_names_of_scopes_and_roles_need_no_map() -> None:
    assert scopes_of([*Scope, "offline_access"], {}) == set(Scope)
    assert scopes_of(["admin"], {}) == ROLES[Role.ADMIN]
    assert scopes_of(["Admin", "admin ", "ADMIN"], {}) == set()


def test_a_map_replaces_the_meaning_of_a_name() -> None:
    names = {"admins": "admin", "everything": " ".join(Scope), "admin": ""}

    assert scopes_of(["admins"], names) == ROLES[Role.ADMIN]
    assert scopes_of(["everything"], names) == set(Scope)
    assert scopes_of(["admin"], names) == set()


class TestSettings:
    def test_values(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("OIDC_ISSUER", "https://example.eu.auth0.com/")
        env.setenv("OIDC_AUDIENCE", "https://api.example.com,api")
        env.setenv("OIDC_SCOPES_MAP", '{"admins": "admin member"}')

        settings = load_settings()

        assert settings.OIDC_ISSUER == "https://example.eu.auth0.com/"
        assert settings.OIDC_AUDIENCE == ["https://api.example.com", "api"]
        assert settings.OIDC_SCOPES_MAP == {"admins": "admin member"}

    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("OIDC_ISSUER", "login.example.com", "must be a URL like https://"),
            ("OIDC_ISSUER", "https://me:hunter2@login.example.com", "must be a URL like https://"),
            ("OIDC_ISSUER", "https://login.example.com?tenant=1", "must be a URL like https://"),
            ("OIDC_ISSUER", "https://login.example.com:port", "must be a URL like https://"),
            (
                "OIDC_ISSUER",
                "https://login.example.com/.well-known/openid-configuration",
                "must be the issuer without /.well-known/openid-configuration",
            ),
            ("OIDC_SCOPES_MAP", '{"admins": "root"}', "'root' is neither a scope nor a role"),
            ("OIDC_SCOPES_MAP", "admins=admin", "must be a JSON object"),
            ("OIDC_SCOPES_MAP", '["admins"]', "must be a JSON object"),
            ("OIDC_SCOPES_MAP", '{"admins": ["admin"]}', "must be a JSON object"),
        ],
    )
    def test_invalid_values(
        self, env: pytest.MonkeyPatch, name: str, value: str, error: str
    ) -> None:
        env.setenv(name, value)

        assert error in settings_error()
        assert "hunter2" not in settings_error()

    def test_production_needs_a_secure_issuer(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("ENV", "production")
        assert "OIDC_ISSUER must be set" in settings_error()
        assert "OIDC_AUDIENCE must be set" in settings_error()
        env.setenv("OIDC_AUDIENCE", "api")
        env.setenv("OIDC_ISSUER", "http://login.example.com")
        assert "OIDC_ISSUER must be an https:// URL" in settings_error()
        env.setenv("OIDC_ISSUER", "https://login.example.com")
        assert "OIDC" not in settings_error()
