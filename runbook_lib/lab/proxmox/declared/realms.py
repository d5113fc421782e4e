"""Realms: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Boolean, Integer, String, all_of, only_9, perm
from . import Endpoint

PROMPT = String(optional=True, pattern=r"^(?:none|login|consent|select_account|\S+)$")
SSLVERSION = String(optional=True, enum=("tlsv1", "tlsv1_1", "tlsv1_2", "tlsv1_3"))
GROUPS_CLAIM = String(optional=True, pattern=r"^[A-Za-z0-9\.\-_]+$", max_length=256)
AUDIENCES = only_9(String(optional=True, pattern='^[^\\x00-\\x1F\\x7F <>#"]*$'))
GROUP_NAME_ATTR = String(optional=True, format="ldap-simple-attr", max_length=256)
MODE = String(optional=True, enum=("ldap", "ldaps", "ldap+starttls"))
TFA = String(optional=True, format="pve-tfa-config", max_length=128)
SYNC_ATTRIBUTES = String(optional=True, pattern=r"^\w+=[^,]+(,\s*\w+=[^,]+)*$")
SERVER1 = String(optional=True, format="address", max_length=256)
GROUP_CLASSES = String(optional=True, format="ldap-simple-attr-list")
REALM = String(format="pve-realm", max_length=32)
FILTER = String(optional=True, max_length=2048)
BASE_DN = String(optional=True, max_length=256)


TABLE: dict[str, Endpoint] = {
    "GET /access/domains": Endpoint("world"),
    "POST /access/domains": Endpoint(
        perm("/access/realm", "Realm.Allocate"),
        {
            "acr-values": String(optional=True, pattern='^[^\\x00-\\x1F\\x7F <>#"]*$'),
            "audiences": AUDIENCES,
            "autocreate": Boolean(optional=True),
            "base_dn": BASE_DN,
            "bind_dn": BASE_DN,
            "capath": String(optional=True),
            "case-sensitive": Boolean(optional=True),
            "cert": String(optional=True),
            "certkey": String(optional=True),
            "check-connection": Boolean(optional=True),
            "client-id": BASE_DN,
            "client-key": BASE_DN,
            "comment": String(optional=True, max_length=4096),
            "default": Boolean(optional=True),
            "domain": String(optional=True, pattern=r"^\S+$", max_length=256),
            "filter": FILTER,
            "group_classes": GROUP_CLASSES,
            "group_dn": BASE_DN,
            "group_filter": FILTER,
            "group_name_attr": GROUP_NAME_ATTR,
            "groups-autocreate": Boolean(optional=True),
            "groups-claim": GROUPS_CLAIM,
            "groups-overwrite": Boolean(optional=True),
            "issuer-url": BASE_DN,
            "mode": MODE,
            "password": String(optional=True),
            "port": Integer(optional=True, minimum=1, maximum=65535),
            "prompt": PROMPT,
            "query-userinfo": Boolean(optional=True),
            "realm": REALM,
            "scopes": String(optional=True),
            "secure": Boolean(optional=True),
            "server1": SERVER1,
            "server2": SERVER1,
            "sslversion": SSLVERSION,
            "sync-defaults-options": String(optional=True, format="realm-sync-options"),
            "sync_attributes": SYNC_ATTRIBUTES,
            "tfa": TFA,
            "type": String(enum=("ad", "ldap", "openid", "pam", "pve")),
            "user_attr": String(optional=True, pattern=r"^\S{2,}$", max_length=256),
            "user_classes": GROUP_CLASSES,
            "username-claim": String(optional=True),
            "verify": Boolean(optional=True),
        },
    ),
    "DELETE /access/domains/{realm}": Endpoint(perm("/access/realm", "Realm.Allocate"), {"realm": REALM}),
    "GET /access/domains/{realm}": Endpoint(
        perm("/access/realm", "Realm.Allocate", "Sys.Audit", any_of=True), {"realm": REALM}
    ),
    "PUT /access/domains/{realm}": Endpoint(
        perm("/access/realm", "Realm.Allocate"),
        {
            "acr-values": String(optional=True, pattern='^[^\\x00-\\x1F\\x7F <>#"]*$'),
            "audiences": AUDIENCES,
            "autocreate": Boolean(optional=True),
            "base_dn": BASE_DN,
            "bind_dn": BASE_DN,
            "capath": String(optional=True),
            "case-sensitive": Boolean(optional=True),
            "cert": String(optional=True),
            "certkey": String(optional=True),
            "check-connection": Boolean(optional=True),
            "client-id": BASE_DN,
            "client-key": BASE_DN,
            "comment": String(optional=True, max_length=4096),
            "default": Boolean(optional=True),
            "delete": String(optional=True, format="pve-configid-list", max_length=4096),
            "digest": String(optional=True, max_length=64),
            "domain": String(optional=True, pattern=r"^\S+$", max_length=256),
            "filter": FILTER,
            "group_classes": GROUP_CLASSES,
            "group_dn": BASE_DN,
            "group_filter": FILTER,
            "group_name_attr": GROUP_NAME_ATTR,
            "groups-autocreate": Boolean(optional=True),
            "groups-claim": GROUPS_CLAIM,
            "groups-overwrite": Boolean(optional=True),
            "issuer-url": BASE_DN,
            "mode": MODE,
            "password": String(optional=True),
            "port": Integer(optional=True, minimum=1, maximum=65535),
            "prompt": PROMPT,
            "query-userinfo": Boolean(optional=True),
            "realm": REALM,
            "scopes": String(optional=True),
            "secure": Boolean(optional=True),
            "server1": SERVER1,
            "server2": SERVER1,
            "sslversion": SSLVERSION,
            "sync-defaults-options": String(optional=True, format="realm-sync-options"),
            "sync_attributes": SYNC_ATTRIBUTES,
            "tfa": TFA,
            "user_attr": String(optional=True, pattern=r"^\S{2,}$", max_length=256),
            "user_classes": GROUP_CLASSES,
            "verify": Boolean(optional=True),
        },
    ),
    "POST /access/domains/{realm}/sync": Endpoint(
        all_of(perm("/access/realm/{realm}", "Realm.AllocateUser"), perm("/access/groups", "User.Modify")),
        {
            "dry-run": Boolean(optional=True),
            "enable-new": Boolean(optional=True),
            "full": Boolean(optional=True),
            "purge": Boolean(optional=True),
            "realm": REALM,
            "remove-vanished": String(
                optional=True, pattern="^(?:(?:(?:(?:acl|properties|entry);)*(?:acl|properties|entry))|none)$"
            ),
            "scope": String(optional=True, enum=("users", "groups", "both")),
        },
    ),
}
