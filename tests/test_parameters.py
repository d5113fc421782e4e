"""Sites from YAML: what is right comes through, what is wrong gives one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from runbook_lib import parameters
from runbook_lib.errors import ParameterError, SecretError, UsageError
from runbook_lib.lab import control
from runbook_lib.site import Site, nearest, span

LAB = "emulated: true\nlab: {}\n"
REAL = """\
proxmox: {url: "https://pve1:8006", token_id: runbook@pve!runbook, token_secret: "env:PVE_TOKEN_SECRET"}
kubernetes: {kubeconfig: kube.yaml}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project's root with no sites yet."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "parameters").mkdir()
    return tmp_path


def written(home: Path, text: str, name: str = "x") -> str:
    (home / "parameters" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return name


def refusal(home: Path, text: str) -> str:
    with pytest.raises(ParameterError) as caught:
        parameters.load_site(written(home, text), root=home, start_lab=False)
    return str(caught.value)


BAD = [
    ("proxmox: {tokenid: a}\n" + LAB, "proxmox.tokenid: unknown key; did you mean token_id?"),
    (LAB + "thresholds: {storagewarn: 0.5}", "thresholds.storagewarn: unknown key; did you mean storage_warn?"),
    (LAB + "kubernetes: {fingerprint: x}", "kubernetes.fingerprint: unknown key; it belongs under proxmox"),
    (LAB + "budget: {xyzzy: 1}", "budget.xyzzy: unknown key; known here: vms, gib, minutes"),
    (LAB + "charts: {csi: {repoo: x, version: '1'}}", "charts.csi.repoo: unknown key; did you mean repo?"),
    (LAB + "<<: {title: x}", "<<: unknown key; known here: name, title"),
    (LAB + "budget: {vms: 4G}", 'budget.vms: expected a whole number, got "4G"; the number alone'),
    (LAB + "budget: {gib: 4G}", 'budget.gib: expected a number, got "4G"; the number alone, in GiB'),
    (LAB + "budget: {vms: '3'}", 'budget.vms: expected a whole number, got "3"; write 3 without quotes'),
    (LAB + "budget: {vms: true}", "budget.vms: expected a whole number, got true"),
    (LAB + "budget: {vms: 1.5}", "budget.vms: expected a whole number, got 1.5"),
    (LAB + "budget: {vms: -1}", "budget.vms: expected at least 0, got -1"),
    (LAB + f"budget: {{vms: {'9' * 30}}}", "budget.vms: expected at most 1e+09"),
    (LAB + "budget: {gib: .inf}", "line 3: a number that is not finite"),
    (LAB + "budget: {gib: .nan}", "line 3: a number that is not finite"),
    (LAB + "budget: {gib: 1e999}", "line 3: a number that is not finite"),
    (LAB + f"budget: {{gib: {'1' * 50}}}", "line 3: a number with more than 40 digits"),
    (LAB + "title: 2026", 'title: expected text, got 2026; quote it: "2026"'),
    (LAB + "requires: {proxmox_version: 8.4}", 'requires.proxmox_version: expected text, got 8.4; quote it: "8.4"'),
    (LAB + "requires: {proxmox_version: eight}", "requires.proxmox_version: 'eight' is not a version"),
    (LAB + "proxmox: {verify: no}", 'proxmox.verify: expected true or false, got "no"; did you mean false?'),
    (LAB + "thresholds: {storage_warn: 85}", "expected at most 1, got 85; a fraction: did you mean 0.85?"),
    (LAB + "thresholds: {storage_warn: 0.95}", "storage_warn is 0.95, expected no more than storage_fail (0.9)"),
    (
        LAB + "thresholds: {certificate_warn_days: 3}",
        "certificate_warn_days is 3, expected no less than",
    ),
    (LAB + "changes: alow", 'changes: expected one of forbid, ask, allow, got "alow"; did you mean allow?'),
    (LAB + "changes: off", "changes: expected one of forbid, ask, allow"),
    (LAB + "names: {nodes: pve1}", 'names.nodes: expected a list, got "pve1"'),
    (LAB + "names: {namespace: Runbook_Test}", "names.namespace: 'Runbook_Test' is not a DNS label"),
    (LAB + "names: {template_vmid: 9150}", "names: template_vmid lies in vmid_range"),
    (LAB + "names: {vmid_range: {start: 9200}}", "names.vmid_range: start 9200 is larger than end 9199"),
    (LAB + "names: {cloud_image: {url: 'https://x/y.img'}}", "names.cloud_image: url is given without checksum"),
    (LAB + "proxmox: https://x", 'proxmox: expected a mapping of keys, got "https://x"'),
    (LAB + "benchmarks: {concurrency: [0]}", "benchmarks.concurrency[0]: expected at least 1, got 0"),
    (LAB + "networks: {pods: 10.0.0.1/16}", "networks.pods: '10.0.0.1/16' is not a network; did you mean 10.0.0.0/16"),
    (LAB + "networks: {pods: 10.0.0.0/33}", "networks.pods: '10.0.0.0/33' is not a network; as in 10.0.0.0/24"),
    (LAB + "networks: {api_vip: 10.0.0.256}", "networks.api_vip: '10.0.0.256' is not an IP address"),
    (
        LAB + "networks: {machine_pool: [10.0.0.9-10.0.0.1]}",
        "'10.0.0.9-10.0.0.1' ends before it begins",
    ),
    (
        LAB + "networks: {machine_pool: ['10.0.0.9-::1']}",
        "'10.0.0.9-::1' mixes IPv4 and IPv6",
    ),
    (
        LAB + "networks: {machine_pool: [10.0.0.1-10.0.0.9, 10.0.0.8/30]}",
        "networks: machine_pool[0] (10.0.0.1-10.0.0.9) overlaps machine_pool[1] (10.0.0.8/30)",
    ),
    (
        LAB + "networks: {machine_pool: [10.244.1.0-10.244.1.9], pods: 10.244.0.0/16}",
        "networks: machine_pool[0] (10.244.1.0-10.244.1.9) overlaps pods (10.244.0.0/16)",
    ),
    (LAB + "networks: {pods: 10.0.0.0/8, services: 10.96.0.0/16}", "networks: pods (10.0.0.0/8) overlaps services"),
    (LAB + "networks: {proxmox_lan: [10.0.0.0/8], join: 10.1.0.0/16}", "proxmox_lan[0] (10.0.0.0/8) overlaps join"),
    (LAB + "networks: {machine_pool: [10.0.0.0/28], api_vip: 10.0.0.5}", "api_vip (10.0.0.5) overlaps machine_pool[0]"),
    (
        LAB + "proxmox: {url: 'http://pve:8006'}",
        "proxmox.url: expected https://host[:port]; did you mean https://pve",
    ),
    (LAB + "proxmox: {url: 'https://pve:99999'}", "proxmox.url: expected https://host[:port]"),
    (LAB + "proxmox: {fingerprint: 'AA:BB'}", "proxmox.fingerprint: not a SHA-256 fingerprint"),
    (LAB + "proxmox: {token_id: runbook}", "proxmox.token_id: 'runbook' is not a token id; as in runbook@pve!runbook"),
    (LAB + "proxmox: {user: root@pam}", "proxmox: user is given without password"),
    (LAB + "proxmox: {verify: false, ca_file: x}", "proxmox: verify: false, and yet ca_file or fingerprint"),
    (
        LAB + "kubernetes: {kubeconfig: a, url: 'https://b'}",
        "kubernetes: kubeconfig and url are given, one is expected",
    ),
    ("title: x", "proxmox.url is missing; https://host:8006, or lab: {} for an emulated site"),
    ("proxmox: {url: 'https://x'}", "proxmox.token_id is missing"),
    ("lab: {}", "lab is set, so emulated: true is expected"),
    (LAB + "name: other", "name: expected the file's own name, x; leave it out"),
    ("", "expected a mapping of keys"),
    ("- a", "expected a mapping of keys"),
    ("title: a\ntitle: b", "line 2: the key 'title' is given twice"),
    ("a: &x [1]\nb: [*x, *x]", "line 1: an anchor (&) is not allowed"),
    ("b: *x", "line 1: an alias (*) is not allowed"),
    ("title: !!python/object/apply:os.system [id]", "line 1: a tag (!) is not allowed"),
    ("title: !secret x", "line 1: a tag (!) is not allowed"),
    ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 20 levels"),
    ("a: " + "{b: " * 30 + "1" + "}" * 30, "nested deeper than 20 levels"),
    ("? [a]\n: b", "line 1: a key that is not text"),
    ("1: b", "line 1: a key that is not text"),
    ("a: [", "line 1: not YAML"),
    ("a: b\n\tc: d", "line 2: not YAML"),
    ("a: 1\n---\nb: 2", "line 2: not YAML"),
    ("a: \x00", "it holds control characters"),
    ("# " + "x" * 300_000, "larger than 256 KiB"),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[expected[:48] for _, expected in BAD])
def test_bad_input_gives_one_line(home: Path, text: str, expected: str) -> None:
    """Each mistake is told in one line that names the file, the key and what was expected."""
    told = refusal(home, text)
    assert told.startswith("parameters/x.yaml: ")
    assert expected in told
    assert "\n" not in told
    assert len(told) < 500


def test_a_refusal_ends_the_program_with_2(home: Path) -> None:
    """A bad parameters file is a usage error."""
    with pytest.raises(UsageError) as caught:
        parameters.load_site(written(home, "a: ["), root=home)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "line",
    [
        "proxmox: {token_id: a@pve!b, token_secret: hunter2hunter2}",
        "proxmox: {token_id: a@pve!b, token_secret: 8675309111}",
        "proxmox: {user: a@pve, password: [hunter2hunter2, 8675309111]}",
        "proxmox: {password_login: {user: a@pve, password: hunter2hunter2}}",
        "kubernetes: {url: 'https://x', token: hunter2hunter2}",
        "proxmox: {url: 'https://root:hunter2hunter2@pve:8006'}",
        "proxmox: {token_secret: hunter2hunter2, frobnicate: hunter2hunter2}",
    ],
)
def test_a_literal_secret_is_refused_and_never_shown(home: Path, line: str) -> None:
    """A secret that stands in the file itself is refused without being repeated."""
    told = refusal(home, LAB + line)
    assert "hunter2" not in told
    assert "8675309" not in told


def test_a_literal_secret_tells_how_to_refer(home: Path) -> None:
    """The refusal of a literal names the forms a reference may have."""
    told = refusal(home, LAB + "proxmox: {token_id: ab@pve!bc, token_secret: hunter2hunter2}")
    assert "proxmox.token_secret: a secret as a literal; a reference is expected; write env:NAME, file:path#key" in told


def test_several_mistakes_are_named_in_the_one_line(home: Path) -> None:
    """The first mistake is explained, the keys of the others are listed."""
    told = refusal(home, LAB + "budget: {vms: a, gib: b}")
    assert told.endswith("also wrong: budget.gib")


def test_a_hostile_key_does_no_harm_to_the_line(home: Path) -> None:
    """Control characters and length of an unknown key do not reach the message."""
    told = refusal(home, LAB + '"\\e[31m\\nevil' + "x" * 300 + '": 1')
    assert "\x1b" not in told
    assert "\n" not in told
    assert len(told) < 500


def test_the_defaults_are_the_sprints_figures(home: Path) -> None:
    """A real site with nothing but its endpoints forbids changes and has the sprint's floors."""
    site = parameters.load_site(written(home, REAL), root=home)
    assert (site.name, site.changes, site.proxmox.verify, site.emulated) == ("x", "forbid", True, False)
    assert (site.requires.proxmox_version, site.requires.kubernetes_version) == ("7.0", "1.26")
    assert site.thresholds.api_p95_ms == 2000


def test_a_site_cannot_be_changed(home: Path) -> None:
    """A loaded site is frozen."""
    site = parameters.load_site(written(home, REAL), root=home)
    with pytest.raises(ValueError, match="frozen"):
        site.changes = "allow"


def test_paths_start_at_the_projects_root(home: Path) -> None:
    """Relative paths and file: references come back absolute, whatever the working directory."""
    text = REAL.replace("env:PVE_TOKEN_SECRET", "file:pve.json#secret")
    site = parameters.load_site(written(home, text), root=home)
    assert site.kubernetes.kubeconfig == str(home / "kube.yaml")
    assert site.proxmox.token_secret == f"file:{home}/pve.json#secret"


def test_paths_of_a_file_elsewhere_start_at_its_folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A parameters file that lies outside of the project brings its companions along."""
    path = tmp_path_factory.mktemp("elsewhere") / "x.yaml"
    path.write_text(REAL, encoding="utf-8")
    assert parameters.load_site(path, root=home).kubernetes.kubeconfig == str(path.parent / "kube.yaml")


@pytest.mark.parametrize("name", ["../parameters/x", "..", "a\nb", "", "x y", ".x", "x" * 100, "-x"])
def test_a_name_is_no_way_out_of_the_folder(home: Path, name: str) -> None:
    """Names that are no plain names are refused in one line."""
    written(home, REAL)
    with pytest.raises(ParameterError) as caught:
        parameters.load_site(name, root=home)
    assert "\n" not in str(caught.value)


def test_an_unknown_site_names_the_nearest(home: Path) -> None:
    """A slip in a site's name is answered with the name that was meant."""
    written(home, REAL, "production")
    with pytest.raises(ParameterError, match=r"there is no parameters/prodction.yaml; did you mean production\?"):
        parameters.load_site("prodction", root=home)


def test_a_path_loads_like_a_name(home: Path, tmp_path: Path) -> None:
    """A site's file may be named by its path, also from the project's root."""
    written(home, REAL)
    assert parameters.load_site("parameters/x.yaml", root=home) == parameters.load_site("x", root=home)
    assert parameters.load_site(home / "parameters" / "x.yaml", root=home).name == "x"


def test_only_yaml_files_are_read(home: Path) -> None:
    """A path to something else is refused, unread."""
    (home / "key.pem").write_text("hunter2", encoding="utf-8")
    with pytest.raises(ParameterError, match="there is no such file"):
        parameters.load_site(home / "key.pem", root=home)


def test_site_names_are_the_files(home: Path) -> None:
    """Every parameters file is a site, but for lists of sites."""
    for name in ("b", "a", "fleet-example"):
        written(home, REAL, name)
    assert parameters.site_names(home) == ["a", "b"]


# --- the project's root ------------------------------------------------------------------------------------------


def test_the_root_is_found_upwards(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder of a project its root is found."""
    monkeypatch.delenv("RUNBOOK_HOME", raising=False)
    monkeypatch.chdir(home / "notebooks")
    assert parameters.project_root() == home.resolve()


def test_the_root_may_be_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RUNBOOK_HOME goes before the working directory."""
    monkeypatch.setenv("RUNBOOK_HOME", str(home))
    assert parameters.project_root() == home.resolve()


def test_a_wrong_root_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RUNBOOK_HOME that names something else is not passed over in silence."""
    monkeypatch.setenv("RUNBOOK_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(ParameterError, match=r"RUNBOOK_HOME: .* has no notebooks/ and parameters/"):
        parameters.project_root()


# --- the files that come with the project ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lab", "example"])
def test_the_sites_that_come_along_load(root: Path, name: str) -> None:
    """lab.yaml and example.yaml are right."""
    assert parameters.load_site(name, root=root, start_lab=False).name == name


def test_the_schema_file_is_generated(root: Path) -> None:
    """parameters/schema.json is what `python -m runbook_lib.parameters` prints."""
    printed = subprocess.run(
        [sys.executable, "-m", "runbook_lib.parameters"], capture_output=True, text=True, check=True
    )
    assert (root / "parameters" / "schema.json").read_text(encoding="utf-8") == printed.stdout


@pytest.mark.parametrize("name", ["lab", "example"])
def test_the_schema_accepts_the_sites_that_come_along(root: Path, name: str) -> None:
    """An editor marks nothing in the files that are right."""
    data = yaml.safe_load((root / "parameters" / f"{name}.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(parameters.schema())
    jsonschema.validate(data, parameters.schema())


@pytest.mark.parametrize(
    "data",
    [{"proxmox": {"tokenid": "x"}}, {"budget": {"vms": "4G"}}, {"changes": "alow"},
     {"proxmox": {"password": "hunter2"}},
     {"proxmox": {"url": "http://x"}}, {"thresholds": {"storage_warn": 85}}, {"names": {"namespace": "A B"}}],
)  # fmt: skip
def test_the_schema_marks_mistakes(data: object) -> None:
    """An editor shows what loading would refuse, literal secrets too."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, parameters.schema())


def test_every_key_has_a_description() -> None:
    """An editor shows a sentence for each key."""
    schema = parameters.schema()
    parts = [schema, *schema["$defs"].values()]
    keys = [(part.get("title"), name, key) for part in parts for name, key in part["properties"].items()]
    assert len(keys) > 80
    assert [(title, name) for title, name, key in keys if not key.get("description")] == []


def test_the_example_names_every_key(root: Path) -> None:
    """example.yaml explains each key of the schema, in use or in a comment."""
    text = (root / "parameters" / "example.yaml").read_text(encoding="utf-8")
    schema = parameters.schema()
    names = {name for part in (schema, *schema["$defs"].values()) for name in part["properties"]}
    assert [name for name in sorted(names) if not re.search(rf"^[ #]*{name}:", text, re.MULTILINE)] == []


def test_the_examples_figures_are_the_defaults(root: Path) -> None:
    """What example.yaml shows as a default is one."""
    data = yaml.safe_load((root / "parameters" / "example.yaml").read_text(encoding="utf-8"))
    for part in ("requires", "thresholds", "names", "images", "budget", "benchmarks"):
        defaults = json.loads(Site.model_fields[part].default.model_dump_json())
        assert data[part] == {key: defaults[key] for key in data[part]}, part


# --- the lab and references --------------------------------------------------------------------------------------


LAB_IN_FULL = """\
emulated: true
lab: {scenario: full-storage, scale: 5}
proxmox: {verify: false, timeout_seconds: 9}
"""


def test_an_emulated_site_is_connected_to_its_lab(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab is asked for the site's scenario; endpoints, references and the scenario it has are filled in."""
    asked: list[object] = []

    def ensure(folder: Path, **wanted: object) -> tuple[control.Connection, str]:
        asked.append((folder, wanted))
        connection = control.Connection(
            control.ProxmoxConnection("https://127.0.0.1:1", "/l/ca.pem", "root@pam", "pw", "root@pam!rehearsal", "s"),
            control.KubernetesConnection("https://127.0.0.1:2", "/l/ca.pem", "/l/kubeconfig", "t"),
        )
        return connection, "quorum-lost"

    monkeypatch.setattr(control, "ensure", ensure)
    site = parameters.load_site(written(home, LAB_IN_FULL), root=home)
    assert asked == [(home / ".lab", {"scenario": "full-storage", "scale": 5})]
    assert site.proxmox.token_secret == f"file:{home}/.lab/secrets.json#proxmox_token_secret"
    assert site.proxmox.password_login is not None
    assert site.lab is not None and site.lab.scenario == "quorum-lost"
    assert (site.proxmox.verify, site.proxmox.timeout_seconds) == (True, 9)
    assert (site.proxmox.ca_file, site.kubernetes.kubeconfig) == ("/l/ca.pem", "/l/kubeconfig")


def test_a_lab_is_not_started_where_only_the_parameters_are_wanted(home: Path) -> None:
    """Listing sites starts nothing."""
    site = parameters.load_site(written(home, LAB), root=home, start_lab=False)
    assert site.proxmox.url == ""


def test_a_missing_secret_names_its_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is sent, a reference without a value is told with its key."""
    monkeypatch.delenv("PVE_TOKEN_SECRET", raising=False)
    (home / "kube.yaml").touch()
    site = parameters.load_site(written(home, REAL), root=home)
    with pytest.raises(SecretError, match=r"proxmox.token_secret: env:PVE_TOKEN_SECRET: the environment"):
        parameters.check_references(site)


def test_a_missing_file_names_its_key(home: Path) -> None:
    """A kubeconfig that is not there is told before anything is sent."""
    site = parameters.load_site(written(home, REAL), root=home)
    with pytest.raises(ParameterError, match=r"site x: kubernetes.kubeconfig: there is no file .*kube.yaml"):
        parameters.check_references(site)


# --- notebook parameters -----------------------------------------------------------------------------------------

DECLARED = {"site": "str", "run_dir": "str", "count": "int", "loose": None}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"sit": "x"}, "notebook parameter 'sit': no notebook declares it; did you mean site?"),
        ({"zzz": 1}, "no notebook declares it; declared: count, loose, run_dir, site"),
        ({"a b": 1}, "'a b': not a plain identifier"),
        ({"a; import os": 1}, "not a plain identifier"),
        ({"site\nx": 1}, "not a plain identifier"),
        ({"class": 1}, "not a plain identifier"),
        ({"__builtins__": 1}, "not a plain identifier"),
        ({"1x": 1}, "not a plain identifier"),
        ({"": 1}, "not a plain identifier"),
        ({"loose": float("nan")}, "the number nan is not plain data"),
        ({"loose": {1: 2}}, "a key that is not text is not plain data"),
        ({"loose": object()}, "a object is not plain data"),
        ({"loose": [{"a": {1, 2}}]}, "a set is not plain data"),
        ({"loose": "\ud800"}, "a lone surrogate is not plain data"),
        ({"site": 3}, "expected str, got 3"),
        ({"count": True}, "expected int, got true"),
        ({"count": "3"}, 'expected int, got "3"'),
    ],
)
def test_a_bad_notebook_parameter_gives_one_line(given: dict[str, object], expected: str) -> None:
    """What papermill would paste or pass over is refused before a notebook is touched."""
    with pytest.raises(ParameterError) as caught:
        parameters.check_notebook_parameters(given, DECLARED)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_good_notebook_parameters_pass() -> None:
    """Declared names with plain values are accepted."""
    parameters.check_notebook_parameters({"site": "lab", "count": 3, "loose": [1, {"a": None}, 2.5]}, DECLARED)


# --- small things ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10.0.0.5", "10.0.0.5", "10.0.0.5"),
        ("10.0.0.0/30", "10.0.0.0", "10.0.0.3"),
        ("10.0.0.5 - 10.0.0.9", "10.0.0.5", "10.0.0.9"),
        ("fd00::1-fd00::ff", "fd00::1", "fd00::ff"),
    ],
)
def test_a_span_has_a_first_and_a_last_address(text: str, first: str, last: str) -> None:
    """Addresses, networks and ranges are one kind of thing."""
    assert [str(end) for end in span(text)] == [first, last]


@pytest.mark.parametrize(("word", "meant"), [("tokenID", "token_id"), ("token-id", "token_id"), ("qqq", None)])
def test_the_nearest_word_forgives_case_and_separators(word: str, meant: str | None) -> None:
    """Slips are recognised; what is near to nothing stays unanswered."""
    assert nearest(word, ["token_id", "url"]) == meant
