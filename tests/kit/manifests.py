"""What manifests say about our code, held against it: settings, commands, ports, probes, paths, keys, queues.

Schemas know nothing of this. Each finding is a sentence that names the object. What it cannot know is what a cluster has:
storage classes, node labels, operators.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import click
from starlette.routing import Route

from kit.kustomize import Manifest, iterate_pod_specs
from pocache.protocol.errors import ConfigError
from pocache.runtime.config import VARIABLES, load_settings
from pocache.runtime.health import _respond
from pocache.runtime.metrics import Metrics
from pocache.runtime.network import NetworkDirectory
from pocache_cli.main import main as cli
from pocache_cli.provision import plan_objects
from pocache_gateway.app import _api_routes, _health_routes
from pocache_gateway.settings import GatewaySettings, read_gateway_settings
from pocache_worker.settings import read_worker_settings

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS: Final = PROJECT["project"]["scripts"]
SERVICES: Final = PROJECT["project"]["entry-points"]["pocache.services"]

FOREIGN_VARIABLES: Final = {
    "PGUSER": "libpq",
    "PGPASSWORD": "libpq",
    "HF_HOME": "huggingface_hub",
    "HF_HUB_OFFLINE": "huggingface_hub",
}
"""Variables that our code does not read, and who does."""
NOT_IN_PODS: Final = {"POCACHE_REQUIRE", "POCACHE_PYTHON", "POCACHE_WORKER_CHEAT"}
NEEDED: Final = (
    "POCACHE_NETWORK_DIR",
    "POCACHE_NATS_URL",
    "POCACHE_NAME",
    "POCACHE_HEALTH_HOST",
    "POCACHE_HEALTH_PORT",
)
"""Set for whatever serves: the defaults are those of a laptop."""
WORKER_NEEDED: Final = (
    "POCACHE_WORKER_MODEL",
    "POCACHE_WORKER_ROLES",
    "POCACHE_WORKER_DEVICE",
    "POCACHE_DRAIN_S",
)
GATEWAY_NEEDED: Final = (
    "POCACHE_GATEWAY_HOST",
    "POCACHE_GATEWAY_PORT",
    "POCACHE_GATEWAY_TOKENIZERS",
    "POCACHE_DRAIN_S",
)
STATELESS: Final = ("beacon", "deadletters")
OPERATORS_SECRETS: Final = {
    "username",
    "password",
    "dbname",
    "host",
    "port",
    "uri",
    "pgpass",
    "jdbc-uri",
    "user",
}
"""The keys of the Secret that CloudNativePG makes for a Cluster, called CLUSTER-app."""


@dataclass(frozen=True)
class Program:
    """One container, with what surrounds it."""

    where: str
    owner: Manifest
    pod: Mapping[str, Any]
    container: Mapping[str, Any]
    is_init: bool

    @property
    def command(self) -> list[str]:
        """The words of its command."""
        return [*self.container.get("command", []), *self.container.get("args", [])]

    @property
    def service(self) -> str | None:
        """Which service it runs, None when it is no service."""
        return self.command[2] if self.command[:2] == ["pocache", "serve"] else None


class Checker:
    """The objects of one overlay, and what is found in them."""

    def __init__(self, objects: list[Manifest], folder: Path, secrets: Mapping[str, Iterable[str]]) -> None:
        """``folder`` is an empty directory to unpack the network in; ``secrets`` are what an operator creates."""
        self._objects = objects
        self._findings: list[str] = []
        self._maps = {one["metadata"]["name"]: one for one in objects if one["kind"] == "ConfigMap"}
        self._secrets = {name: set(keys) for name, keys in secrets.items()}
        for one in objects:
            if one["kind"] == "Cluster":
                self._secrets[f"{one['metadata']['name']}-app"] = set(OPERATORS_SECRETS)
        self.directory = self._unpack(folder)
        self.programs = [program for one in objects for program in iterate_programs(one)]

    def check(self) -> list[str]:
        """Return every finding."""
        for program in self.programs:
            self._check_references(program)
            environ = self._read_environment(program)
            self._check_command(program, environ)
            self._check_environment(program, environ)
            self._check_paths(program, environ)
            self._check_ports(program, environ)
            self._check_security(program)
        for one in self._objects:
            self._check_object(one)
        self._check_services()
        return self._findings

    def _find(self, where: str, what: str) -> None:
        self._findings.append(f"{where}: {what}")

    def _unpack(self, folder: Path) -> NetworkDirectory:
        for prefix, target in (("pocache-network-", ""), ("pocache-models-", "models")):
            for name, one in self._maps.items():
                if name.startswith(prefix):
                    (folder / target).mkdir(parents=True, exist_ok=True)
                    for key, text in one.get("data", {}).items():
                        (folder / target / key).write_text(text, encoding="utf-8")
                    for key, text in one.get("binaryData", {}).items():
                        (folder / target / key).write_bytes(base64.b64decode(text))
        return NetworkDirectory(folder)

    def _check_command(self, program: Program, environ: Mapping[str, str]) -> None:
        words = program.command
        if words[:2] == ["python", "-m"]:
            if len(words) < 3 or importlib.util.find_spec(words[2]) is None:
                self._find(program.where, f"there is no module {words[2:3]}")
        elif not words or words[0] not in SCRIPTS:
            self._find(program.where, f"{words[:1]} is no console script of ours")
        elif program.service is not None:
            self._check_service(program)
        else:
            self._check_verb(program, words[1:], environ)

    def _check_service(self, program: Program) -> None:
        if program.service not in SERVICES:
            self._find(program.where, f"there is no service {program.service}")
            return
        module, _, name = SERVICES[program.service].partition(":")
        if not callable(getattr(importlib.import_module(module), name, None)):
            self._find(program.where, f"{SERVICES[program.service]} cannot be called")

    def _check_verb(self, program: Program, words: list[str], environ: Mapping[str, str]) -> None:
        command: click.Command | None = cli
        context = click.Context(cli)
        while isinstance(command, click.Group):
            command = command.get_command(context, words[0]) if words else None
            words = words[1:]
        if command is None:
            self._find(program.where, f"there is no command {' '.join(program.command)}")
            return
        # Only the form of the command is looked at: a path of the container is replaced by one that exists here.
        arguments = ["." if word.startswith("/") else word for word in words]
        try:
            with patch.dict(os.environ, environ):
                command.make_context(program.where, arguments)
        except click.UsageError as error:
            self._find(program.where, f"{' '.join(program.command)}: {error.format_message()}")

    def _read_environment(self, program: Program) -> dict[str, str]:
        """Return the variables as the container will see them, secrets as a word."""
        environ: dict[str, str] = {}
        for source in program.container.get("envFrom", []):
            found = self._maps.get(source.get("configMapRef", {}).get("name"))
            environ |= found.get("data", {}) if found is not None else {}
        for variable in program.container.get("env", []):
            source = variable.get("valueFrom", {})
            if "value" in variable:
                environ[variable["name"]] = variable["value"]
            elif "fieldRef" in source:
                environ[variable["name"]] = self._read_field(program, source["fieldRef"]["fieldPath"])
            elif "secretKeyRef" in source:
                environ[variable["name"]] = "secret"
            else:
                self._find(program.where, f"{variable['name']} has no value")
        return environ

    def _read_field(self, program: Program, path: str) -> str:
        label = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
        if label is not None:
            value = program.owner["spec"]["template"]["metadata"]["labels"].get(label[1])
            if value is None:
                self._find(program.where, f"the Pod has no label {label[1]}")
            return str(value)
        if path == "metadata.name" and program.owner["kind"] == "StatefulSet":
            first = program.owner["spec"].get("ordinals", {}).get("start", 0)
            return f"{program.owner['metadata']['name']}-{first}"
        self._find(program.where, f"nobody can tell here what {path} is")
        return ""

    def _check_environment(self, program: Program, environ: Mapping[str, str]) -> None:
        for name in environ:
            if name.startswith("POCACHE_") and (name not in VARIABLES or name in NOT_IN_PODS):
                self._find(program.where, f"{name} is not a setting of a process")
            elif not name.startswith("POCACHE_") and name not in FOREIGN_VARIABLES:
                self._find(program.where, f"{name} is a variable that nobody is known to read")
        if program.service is None:
            return
        needed = NEEDED + {"worker": WORKER_NEEDED, "gateway": GATEWAY_NEEDED}.get(program.service, ())
        if program.service not in STATELESS and "POCACHE_DATABASE_URL" not in environ:
            needed += ("POCACHE_STATE_DIR",)
        if program.service == "beacon" and self.directory.genesis.chain.source == "relay":
            needed += ("POCACHE_BEACON_ENDPOINTS",)
        for name in needed:
            if name not in environ:
                self._find(program.where, f"{name} is not set")
        try:
            settings = load_settings(
                {**environ, "POCACHE_NETWORK_DIR": str(self.directory.path)}, name_default=""
            )
            if program.service == "worker":
                read_worker_settings(settings)
            if program.service == "gateway":
                self._check_gateway(program, read_gateway_settings(settings), settings.health_port)
        except ConfigError as error:
            self._find(program.where, str(error))
            return
        self._check_grace(program, settings.drain_s)

    def _check_gateway(self, program: Program, gateway: GatewaySettings, health_port: int) -> None:
        """The names of its tokenizers, its own port, and the pause in which nobody is sent to it any more."""
        names = {model.entry.name for model in self.directory.load_models().values()}
        for name in sorted(set(gateway.tokenizers) - names):
            self._find(
                program.where, f"POCACHE_GATEWAY_TOKENIZERS names {name}, which the network does not serve"
            )
        ports = {port["name"]: port["containerPort"] for port in program.container.get("ports", [])}
        if ports.get("http") != gateway.port or gateway.port == health_port:
            self._find(program.where, "its http port is not POCACHE_GATEWAY_PORT, or is that of its health")
        if gateway.host not in ("0.0.0.0", "::"):
            self._find(program.where, f"it listens on {gateway.host} alone")
        if get_pause_s(program) <= 0:
            self._find(program.where, "it is told to stop while requests are still sent to it")
        for rule in self._list_rules():
            if gateway.public_url and gateway.public_url != f"https://{rule['host']}":
                self._find(program.where, f"it is {gateway.public_url}, and {rule['host']} is routed to it")

    def _list_rules(self) -> list[Any]:
        return [rule for one in self._objects if one["kind"] == "Ingress" for rule in one["spec"]["rules"]]

    def _check_grace(self, program: Program, drain_s: float) -> None:
        grace_s = program.pod.get("terminationGracePeriodSeconds", 30)
        needed_s = drain_s + get_pause_s(program)
        if grace_s <= needed_s:
            self._find(
                program.where,
                f"its grace of {grace_s} s is not above the {needed_s:g} s that it pauses and drains",
            )
        genesis = self.directory.genesis
        lease_s = genesis.deadlines.lease_ticks * genesis.chain.period_s
        if program.service == "worker" and drain_s <= lease_s:
            self._find(program.where, f"it drains for {drain_s:g} s, and a lease lasts {lease_s} s")

    def _check_references(self, program: Program) -> None:
        for source in program.container.get("envFrom", []):
            name = source.get("configMapRef", {}).get("name")
            if name not in self._maps:
                self._find(program.where, f"there is no ConfigMap {name}")
        for variable in program.container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference is not None and reference["key"] not in self._secrets.get(reference["name"], ()):
                self._find(program.where, f"no Secret {reference['name']} has a key {reference['key']}")
        volumes = {volume["name"] for volume in program.pod.get("volumes", [])}
        volumes |= {one["metadata"]["name"] for one in program.owner["spec"].get("volumeClaimTemplates", [])}
        for mount in program.container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                self._find(program.where, f"there is no volume {mount['name']}")

    def _check_paths(self, program: Program, environ: Mapping[str, str]) -> None:
        mounts = {mount["mountPath"]: mount for mount in program.container.get("volumeMounts", [])}
        paths = {name: value for name, value in environ.items() if value.startswith("/")}
        paths |= {word: word for word in program.command if word.startswith("/")}
        for name, path in paths.items():
            if name == "POCACHE_STATE_DIR" and (program.service is None or program.service in STATELESS):
                continue
            is_given = program.is_init and any(mount.startswith(f"{path}/") for mount in mounts)
            if not is_given and not any(path == mount or path.startswith(f"{mount}/") for mount in mounts):
                self._find(program.where, f"nothing is mounted at {path} ({name})")
            elif name == "POCACHE_STATE_DIR" and mounts.get(path, {}).get("readOnly"):
                self._find(program.where, f"{path} cannot be written to")
        if program.command[:3] == ["pocache", "keys", "install"]:
            self._check_keys(program, environ, mounts)

    def _check_keys(self, program: Program, environ: Mapping[str, str], mounts: Mapping[str, Any]) -> None:
        given = program.command[3]
        volumes = {volume["name"]: volume for volume in program.pod["volumes"]}
        for folder, kind in (("network", "configMap"), ("models", "configMap"), ("keys", "secret")):
            mount = mounts.get(f"{given}/{folder}")
            if mount is None or kind not in volumes.get(mount["name"], {}):
                self._find(program.where, f"no {kind} is mounted at {given}/{folder}")
                return
        secret = volumes[mounts[f"{given}/keys"]["name"]]["secret"]["secretName"]
        if "--accounts" in program.command:
            self._check_accounts(program, secret)
            return
        for name in self._list_names(program, environ["POCACHE_NAME"]):
            wanted = {f"{name}.transport.seed", f"{name}.transport.jwt"}
            if name not in ("provisioner", "deadletters"):
                wanted.add(f"{name}.signing.seed")
            if name == "beacon" and self.directory.genesis.chain.source == "local":
                wanted.add(f"{name}.bls.hex")
            for key in sorted(wanted - self._secrets.get(secret, set())):
                self._find(program.where, f"the Secret {secret} has no key {key}")

    def _check_accounts(self, program: Program, secret: str) -> None:
        """A gateway's Secret has every key of each account in it, and the reader's: the explorer is on by it."""
        keys = self._secrets.get(secret, set())
        accounts = {key.removesuffix(".signing.seed") for key in keys if key.endswith(".signing.seed")}
        if not accounts:
            self._find(program.where, f"the Secret {secret} has no account's keys")
        for name in (*sorted(accounts), "reader"):
            for suffix in ("transport.seed", "transport.jwt"):
                if f"{name}.{suffix}" not in keys:
                    self._find(program.where, f"the Secret {secret} has no key {name}.{suffix}")

    def _list_names(self, program: Program, name: str) -> list[str]:
        """Return the participants that the Pods of a set are: as many as it may ever have."""
        if program.owner["kind"] != "StatefulSet" or name == program.owner["metadata"]["name"]:
            return [name]
        group, _, first = name.rpartition("-")
        most = program.owner["spec"].get("replicas", 1)
        for one in self._objects:
            if one["kind"] == "ScaledObject" and one["spec"]["scaleTargetRef"]["name"] == group:
                most = one["spec"]["maxReplicaCount"]
        return [f"{group}-{int(first) + index}" for index in range(most)]

    def _check_ports(self, program: Program, environ: Mapping[str, str]) -> None:
        ports = {port["name"]: str(port["containerPort"]) for port in program.container.get("ports", [])}
        if program.service is not None and ports.get("health") != environ.get("POCACHE_HEALTH_PORT"):
            self._find(program.where, "its health port is not POCACHE_HEALTH_PORT")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = program.container.get(probe, {}).get("httpGet")
            if get is None:
                if program.service is not None:
                    self._find(program.where, f"it has no {probe}")
                continue
            status, _ = _respond(f"GET {get['path']} HTTP/1.1".encode(), lambda: True)
            if not status.startswith("200"):
                self._find(program.where, f"its {probe} asks for {get['path']}, which is {status}")
            if get["port"] not in ports:
                self._find(program.where, f"its {probe} asks a port {get['port']} that it lacks")

    def _check_security(self, program: Program) -> None:
        context = program.container.get("securityContext", {})
        pod = program.pod.get("securityContext", {})
        facts = {
            "it may become root": pod.get("runAsNonRoot") is True
            and context.get("allowPrivilegeEscalation") is False,
            "its root is writable": context.get("readOnlyRootFilesystem") is True,
            "it keeps capabilities": context.get("capabilities") == {"drop": ["ALL"]},
            "it has no seccomp profile": pod.get("seccompProfile") == {"type": "RuntimeDefault"},
            "it is given the cluster's token": program.pod.get("automountServiceAccountToken") is False,
            # A Service called pocache-x would set a POCACHE_ variable that load_settings refuses.
            "it is given variables of Services": program.pod.get("enableServiceLinks") is False,
        }
        resources = program.container.get("resources", {})
        facts["it has no bounds"] = {"cpu", "memory"} <= set(resources.get("requests", {})) & set(
            resources.get("limits", {})
        )
        for what, holds in facts.items():
            if not holds:
                self._find(program.where, what)

    def _check_object(self, one: Manifest) -> None:
        where = f"{one['kind']} {one['metadata']['name']}"
        spec = one.get("spec", {})
        if one["kind"] == "Secret":
            self._find(where, "no secret belongs into manifests")
        elif one["kind"] == "ScaledObject":
            self._check_scaling(where, spec)
        elif one["kind"] == "HorizontalPodAutoscaler":
            self._check_autoscaler(where, spec)
        elif one["kind"] == "Ingress":
            self._check_ingress(where, spec)
        elif one["kind"] in ("PodDisruptionBudget", "Service"):
            selector = spec["selector"].get("matchLabels", spec["selector"])
            if not any(_selects(selector, labels) for labels in self._pod_labels()):
                self._find(where, f"nothing has the labels {selector}")
            if one["kind"] == "Service":
                self._check_target_ports(where, spec)
        elif one["kind"] == "ServiceMonitor":
            self._check_monitor(where, spec)
        elif one["kind"] == "ExternalSecret":
            provided = {entry["secretKey"] for entry in spec["data"]}
            if provided != self._secrets.get(spec["target"]["name"]):
                self._find(where, "its keys are not those that pocache keys export writes")

    def _check_monitor(self, where: str, spec: Mapping[str, Any]) -> None:
        services = [
            one
            for one in self._objects
            if one["kind"] == "Service"
            and _selects(spec["selector"]["matchLabels"], one["metadata"].get("labels", {}))
        ]
        ports = {port["name"] for service in services for port in service["spec"]["ports"]}
        for endpoint in spec["endpoints"]:
            if endpoint["port"] not in ports:
                self._find(where, f"no Service that it selects has a port {endpoint['port']}")
            request = f"GET {endpoint['path']} HTTP/1.1".encode()
            if not _respond(request, lambda: True, Metrics("any"))[0].startswith("200"):
                self._find(where, f"{endpoint['path']} is not served")

    def _check_target_ports(self, where: str, spec: Mapping[str, Any]) -> None:
        """Some Pod that a Service selects has each port that it points at (a Job's serves nothing)."""
        known = {
            port["name"]
            for program in self.programs
            if _selects(spec["selector"], program.owner["spec"]["template"]["metadata"]["labels"])
            for port in program.container.get("ports", [])
        }
        for port in spec["ports"]:
            if port["targetPort"] not in known:
                self._find(where, f"no Pod that it selects has a port {port['targetPort']}")

    def _check_ingress(self, where: str, spec: Mapping[str, Any]) -> None:
        services = {one["metadata"]["name"]: one for one in self._objects if one["kind"] == "Service"}
        covered = {
            host for entry in spec.get("tls", []) for host in entry["hosts"] if entry.get("secretName")
        }
        for rule in spec["rules"]:
            if rule["host"] not in covered:
                self._find(where, f"{rule['host']} is served without TLS")
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                found = services.get(backend["name"])
                ports = {port["name"] for port in found["spec"]["ports"]} if found is not None else set()
                if backend["port"]["name"] not in ports:
                    self._find(where, f"no Service {backend['name']} has a port {backend['port']['name']}")
                if not any(route.startswith(path["path"]) for route in _list_routes()):
                    self._find(where, f"the gateway has no route {path['path']}")

    def _check_autoscaler(self, where: str, spec: Mapping[str, Any]) -> None:
        target = spec["scaleTargetRef"]
        found = [one for one in self.programs if one.owner["kind"] == target["kind"]]
        found = [one for one in found if one.owner["metadata"]["name"] == target["name"] and not one.is_init]
        if not found:
            self._find(where, f"there is no {target['kind']} {target['name']}")
        for program in found:
            if "replicas" in program.owner["spec"]:
                self._find(
                    where, f"{target['name']} has replicas of its own, which every apply would set again"
                )
            if program.service != "gateway":
                self._find(where, f"{program.service} is no service that may run twice")
            if not self._read_environment(program).get("POCACHE_DATABASE_URL", "").startswith("postgresql"):
                self._find(where, f"several of {target['name']} would each have API keys of their own")

    def _check_scaling(self, where: str, spec: Mapping[str, Any]) -> None:
        target = spec["scaleTargetRef"]
        workloads = {(one["kind"], one["metadata"]["name"]): one for one in self._objects}
        found = workloads.get((target["kind"], target["name"]))
        if found is None:
            self._find(where, f"there is no {target['kind']} {target['name']}")
        elif "replicas" in found["spec"]:
            self._find(where, f"{target['name']} has replicas of its own, which every apply would set again")
        _, consumers = plan_objects(self.directory)
        known = {(consumer.stream, consumer.durable) for consumer in consumers}
        for trigger in spec["triggers"]:
            meta = trigger["metadata"]
            if trigger["type"] != "nats-jetstream" or (meta["stream"], meta["consumer"]) not in known:
                self._find(where, f"nobody provisions {meta.get('stream')}.{meta.get('consumer')}")
            core = json.loads((self.directory.path / "nats.json").read_bytes())["core_account"]
            if meta.get("account") != core:
                self._find(where, f"the streams are in the account {core}, not in {meta.get('account')}")

    def _check_services(self) -> None:
        """Every service that exists has to run somewhere."""
        running = {program.service for program in self.programs} - {None}
        for missing in sorted(set(SERVICES) - running):
            self._find("the overlay", f"nothing runs the service {missing}")

    def _pod_labels(self) -> Iterator[Mapping[str, str]]:
        for one in self._objects:
            if any(True for _ in iterate_pod_specs(one)):
                yield one["spec"]["template"]["metadata"]["labels"]


def iterate_programs(one: Manifest) -> Iterator[Program]:
    """Yield the containers of a workload."""
    for pod in iterate_pod_specs(one):
        for field in ("initContainers", "containers"):
            for container in pod.get(field, []):
                where = f"{one['kind']} {one['metadata']['name']}, {container['name']}"
                yield Program(where, one, pod, container, is_init=field == "initContainers")


def get_pause_s(program: Program) -> float:
    """Return how long the container is left running before it is told to stop."""
    return float(program.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))


def _list_routes() -> list[str]:
    return [route.path for route in (*_health_routes(), *_api_routes()) if isinstance(route, Route)]


def _selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())
