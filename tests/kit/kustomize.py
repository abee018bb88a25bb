"""What ``kubectl kustomize`` does with this project's overlays, for machines without it.

A subset: resources, namespace, images, configMapGenerator with its name hash and the references to it, and patches, by
strategic merge and by JSON patch. Any other field of a kustomization is refused, so that nothing is silently left out. A
vector that kustomize itself has written holds the subset to the original (tests/vectors/kustomize).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

Manifest = dict[str, Any]

FIELDS: Final = frozenset(
    {"apiVersion", "kind", "namespace", "resources", "images", "configMapGenerator", "patches"}
)
CLUSTER_KINDS: Final = frozenset({"Namespace", "ClusterRole", "ClusterRoleBinding"})
MERGE_KEYS: Final[Mapping[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""Lists that a strategic merge joins by a key; every other list is replaced."""
_LINE_CHARS: Final = 70
_HASH_LETTERS: Final = str.maketrans({"0": "g", "1": "h", "3": "k", "a": "m", "e": "t"})


class KustomizeError(Exception):
    """A kustomization that cannot be built, or that uses what this subset lacks."""


def build(folder: Path) -> list[Manifest]:
    """Return the objects of an overlay. Raises KustomizeError."""
    objects = _accumulate(folder)
    names: dict[tuple[str | None, str], str] = {}
    for one in objects:
        if one.pop("#generated", False):
            name = one["metadata"]["name"]
            names[one["metadata"].get("namespace"), name] = one["metadata"]["name"] = (
                f"{name}-{compute_hash(one)}"
            )
    for one in objects:
        _rename(one, partial(_get_name, names, one["metadata"].get("namespace")))
    identities = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects]
    if len(set(identities)) != len(identities):
        raise KustomizeError(f"{folder}: two objects have the same kind and name")
    return objects


def _get_name(names: Mapping[tuple[str | None, str], str], namespace: str | None, name: str) -> str:
    return names.get((namespace, name), name)


def compute_hash(config_map: Manifest) -> str:
    """Return the suffix of a generated ConfigMap: ten digits of the SHA-256 of its JSON, as Go writes it.

    The name in it is empty: kustomize looks for it in a field that does not exist, and has to stay with that.
    """
    body: dict[str, Any] = {"kind": "ConfigMap", "name": ""}
    body["data"] = config_map.get("data") or ""
    if "binaryData" in config_map:
        body["binaryData"] = config_map["binaryData"]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return hashlib.sha256(text.encode()).hexdigest()[:10].translate(_HASH_LETTERS)


def _accumulate(folder: Path) -> list[Manifest]:
    file = folder / "kustomization.yaml"
    if not file.is_file():
        raise KustomizeError(f"{file} is missing")
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    unknown = set(given) - FIELDS
    if unknown:
        raise KustomizeError(f"{file}: {', '.join(sorted(unknown))} is not of the subset")
    objects = [one for name in given.get("resources", []) for one in _read_resource(folder, name)]
    objects += [_generate(folder, one) for one in given.get("configMapGenerator", [])]
    for patch in given.get("patches", []):
        _patch(folder, patch, objects)
    for one in objects:
        if "namespace" in given:
            _set_namespace(one, given["namespace"])
        for image in given.get("images", []):
            _set_image(one, image)
    return objects


def _read_resource(folder: Path, name: str) -> list[Manifest]:
    path = folder / name
    if path.is_dir():
        return _accumulate(path)
    if not path.is_file():
        raise KustomizeError(f"{path} is missing")
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one is not None]


def _generate(folder: Path, given: Mapping[str, Any]) -> Manifest:
    if set(given) - {"name", "literals", "files"}:
        raise KustomizeError(f"configMapGenerator {given['name']}: not of the subset")
    data: dict[str, str] = {}
    binary: dict[str, str] = {}
    for literal in given.get("literals", []):
        key, _, value = literal.partition("=")
        data[key] = value.strip("\"'") if value[:1] == value[-1:] and value[:1] in "\"'" else value
    for entry in given.get("files", []):
        key, _, name = entry.rpartition("=")
        content = (folder / name).read_bytes()
        try:
            data[key or Path(name).name] = content.decode()
        except UnicodeDecodeError:
            binary[key or Path(name).name] = _encode(content)
    made: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": given["name"]},
        "#generated": True,
    }
    return made | ({"data": data} if data else {}) | ({"binaryData": binary} if binary else {})


def _encode(content: bytes) -> str:
    """Return base64 in lines of 70 characters, or in one when it is shorter."""
    text = base64.b64encode(content).decode()
    if len(text) < _LINE_CHARS:
        return text
    return "".join(f"{text[start : start + _LINE_CHARS]}\n" for start in range(0, len(text), _LINE_CHARS))


def _patch(folder: Path, given: Mapping[str, Any], objects: list[Manifest]) -> None:
    text = (folder / given["path"]).read_text(encoding="utf-8") if "path" in given else given["patch"]
    patch = yaml.safe_load(text)
    target = given.get("target")
    if target is None:
        target = {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    found = [one for one in objects if _is_target(one, target)]
    if not found:
        raise KustomizeError(f"{folder}: a patch of {target} finds nothing")
    for one in found:
        if isinstance(patch, list):
            for operation in patch:
                _apply_operation(one, operation)
        else:
            body = {
                key: value for key, value in patch.items() if key not in ("apiVersion", "kind", "metadata")
            }
            merged = merge(one, body)
            one.clear()
            one.update(merged)


def _is_target(one: Manifest, target: Mapping[str, str]) -> bool:
    if set(target) - {"kind", "name"}:
        raise KustomizeError(f"a patch's target {target} is not of the subset")
    facts = {"kind": one["kind"], "name": one["metadata"]["name"]}
    return all(re.fullmatch(pattern, facts[key]) for key, pattern in target.items())


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """Return a strategic merge: maps join, None removes, lists with a merge key join by it, others are replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        merged = dict(base)
        for key, value in patch.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(merged[key], value, key) if key in merged else deepcopy(value)
        return merged
    if isinstance(base, list) and isinstance(patch, list) and field in MERGE_KEYS:
        key = MERGE_KEYS[field]
        known = {one[key]: one for one in base}
        added = [merge(known[one[key]], one) if one[key] in known else deepcopy(one) for one in patch]
        patched = {one[key] for one in patch}
        return added + [one for one in base if one[key] not in patched]
    return deepcopy(patch)


def _apply_operation(one: Manifest, operation: Mapping[str, Any]) -> None:
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    where: Any = one
    for part in path:
        where = where[int(part) if isinstance(where, list) else part]
    key: Any = int(last) if isinstance(where, list) and last != "-" else last
    kind = operation["op"]
    exists = (key in where) if isinstance(where, dict) else (key != "-" and key < len(where))
    if kind in ("replace", "remove") and not exists:
        raise KustomizeError(f"{one['kind']} {one['metadata']['name']} has no {operation['path']}")
    if kind == "remove":
        del where[key]
    elif kind == "replace" or (kind == "add" and isinstance(where, dict)):
        where[key] = deepcopy(operation["value"])
    elif kind == "add":
        where.insert(len(where) if key == "-" else key, deepcopy(operation["value"]))
    else:
        raise KustomizeError(f"{kind} is not of the subset")


def _set_namespace(one: Manifest, namespace: str) -> None:
    if one["kind"] == "Namespace":
        one["metadata"]["name"] = namespace
    elif one["kind"] not in CLUSTER_KINDS:
        one["metadata"]["namespace"] = namespace


def _set_image(one: Manifest, image: Mapping[str, str]) -> None:
    for spec in iterate_pod_specs(one):
        for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
            name, _, tag = container.get("image", "").partition(":")
            if name == image["name"]:
                ending = f"@{image['digest']}" if "digest" in image else f":{image.get('newTag', tag)}"
                container["image"] = image.get("newName", name) + ending.rstrip(":")


def iterate_pod_specs(one: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the Pod spec of a workload, nothing for other objects."""
    template = one.get("spec", {}).get("template") if isinstance(one.get("spec"), dict) else None
    if isinstance(template, dict) and isinstance(template.get("spec"), dict):
        yield template["spec"]


def _rename(one: Manifest, new_name: Callable[[str], str]) -> None:
    for spec in iterate_pod_specs(one):
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                volume["configMap"]["name"] = new_name(volume["configMap"]["name"])
        for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    source["configMapRef"]["name"] = new_name(source["configMapRef"]["name"])
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("configMapKeyRef")
                if reference is not None:
                    reference["name"] = new_name(reference["name"])
