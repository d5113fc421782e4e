"""The runbook's own conduct, by proof."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runbook_lib import conduct, errors, secrets


class Client:
    """A client that counts what it sends, and refuses before sending where it is told to."""

    def __init__(self, guarded):
        self.guarded, self.wire = guarded, SimpleNamespace(count=0)

    def request(self, method, path):
        """What a guarded client does, and what one without a guard would."""
        if self.guarded:
            raise errors.ReadOnly(f"{method} {path}", "it changes something")
        self.wire.count += 1
        raise errors.NotFound("no such thing", "404", status=404)


@pytest.mark.parametrize(("guarded", "refused", "sent"), [(True, True, 0), (False, False, 1)])
def test_a_missing_guard_would_be_seen(guarded, refused, sent):
    """The change names something that does not exist, so that even then nothing happens."""
    for row in conduct.refusals(Client(guarded), Client(guarded)):
        assert (row.refused, row.sent) == (refused, sent)


def test_the_canary_is_seen_nowhere_and_forgotten_afterwards():
    """Ten spellings through three doors."""
    notes = conduct.canary()
    assert len(notes) == 30
    assert not [note for note in notes if note.seen]


def test_a_redactor_that_does_nothing_would_be_noticed(monkeypatch):
    """Every spelling is seen when nothing is redacted."""
    monkeypatch.setattr(secrets, "register", lambda value: None)
    assert all(note.seen for note in conduct.canary())


def site(**given):
    """As much of a site as its files ask for."""
    pve = {"token_secret": "file:token.json#secret", "password": "env:PASSWORD", "password_login": None}
    kube = SimpleNamespace(token=None, kubeconfig="kube.yaml")
    return SimpleNamespace(name="here", proxmox=SimpleNamespace(**{**pve, **given}), kubernetes=kube)


def test_credentials_are_found_with_their_modes(tmp_path):
    """By the site's references, the kubeconfig and what the runbook keeps itself."""
    for name in ("token.json", "kube.yaml"):
        (tmp_path / name).write_text("x", encoding="utf-8")
        (tmp_path / name).chmod(0o644)
    kept = tmp_path / ".secrets" / "here"
    kept.mkdir(parents=True, mode=0o700)
    (kept / "csi.json").touch(0o600)
    rows = {row.path: row.mode for row in conduct.kept_files(site(), root=tmp_path) if row.secret}
    assert rows == {
        "token.json": 0o644,
        "kube.yaml": 0o644,
        ".secrets/here": 0o700,
        ".secrets/here/csi.json": 0o600,
    }


def test_a_known_secret_in_a_result_is_found(tmp_path):
    """Only folders that are runs are searched, and only for secrets that are known."""
    run = tmp_path / "outputs" / "here" / "20261124T080000Z-aaaa"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"note": "Tr0ubadour-and-3"}', encoding="utf-8")
    (run / "01_a.ipynb").write_text("nothing here", encoding="utf-8")
    secrets.register("Tr0ubadour-and-3")
    try:
        rows = conduct.kept_files(site(), root=tmp_path)
    finally:
        secrets.forget(["Tr0ubadour-and-3"])
    assert [row.path.rpartition("/")[2] for row in rows if row.holds_known_secret] == ["run.json"]
