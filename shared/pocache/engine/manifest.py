"""Model manifests: which bytes a model is. Torch-free, so that routers and the command line can name a model.

Owns the choice of files that make a model (weights, configuration, tokenizer) and the digest over them.
Refuses directories without a configuration or without weights. It does not say that a worker ran these bytes:
the rows do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocache.protocol.encoding import lp
from pocache.protocol.errors import EngineError
from pocache.protocol.ids import Digest, ModelId

MANIFEST_KIND = "pocache/model/v1"
CONFIG_NAME = "config.json"
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin"})
MODEL_SUFFIXES = WEIGHT_SUFFIXES | {".json", ".model", ".txt", ".jinja", ".tiktoken"}
FILES_MAX = 4_096


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model."""

    name: str
    sha256: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """The files of a model, sorted by name."""

    files: tuple[ModelFile, ...]

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if names != sorted(set(names)) or not 1 <= len(names) <= FILES_MAX:
            raise EngineError("a manifest lists its files once each, sorted by name")
        if CONFIG_NAME not in names:
            raise EngineError(f"no {CONFIG_NAME}: this is not a model directory")
        if not any(Path(name).suffix in WEIGHT_SUFFIXES for name in names):
            raise EngineError("no weights (.safetensors or .bin): this is not a model directory")

    @property
    def model_id(self) -> ModelId:
        """Return SHA256(lp("pocache/model/v1") ‖ for each file: lp(name) ‖ u64be size ‖ sha256)."""
        state = hashlib.sha256(lp(MANIFEST_KIND.encode()))
        for file in self.files:
            state.update(lp(file.name.encode()) + file.size_bytes.to_bytes(8, "big") + file.sha256)
        return ModelId(state.digest())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-safe form."""
        files = [{"name": f.name, "sha256": f.sha256.hex(), "size_bytes": f.size_bytes} for f in self.files]
        return {"kind": MANIFEST_KIND, "model_id": self.model_id.hex(), "files": files}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelManifest:
        """Read the JSON form; EngineError when it is malformed or its model id is not that of its files."""
        try:
            if set(data) != {"kind", "model_id", "files"} or data["kind"] != MANIFEST_KIND:
                raise EngineError(f"not a {MANIFEST_KIND} manifest")
            manifest = cls(tuple(_read_file_entry(entry) for entry in data["files"]))
            if bytes.fromhex(data["model_id"]) != manifest.model_id:
                raise EngineError("the manifest's model id is not that of its files")
        except (TypeError, ValueError, KeyError) as error:
            raise EngineError(f"malformed model manifest: {error}") from error
        return manifest


def compute_manifest(model_dir: Path | str) -> ModelManifest:
    """Hash a model directory's own files, not its subdirectories'; EngineError when it holds no model."""
    directory = Path(model_dir)
    if not directory.is_dir():
        raise EngineError(f"no such model directory: {directory}")
    paths = (path for path in directory.iterdir() if path.suffix in MODEL_SUFFIXES and path.is_file())
    return ModelManifest(tuple(_hash_file(path) for path in sorted(paths, key=lambda path: path.name)))


def _hash_file(path: Path) -> ModelFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").digest()
    return ModelFile(path.name, Digest(digest), path.stat().st_size)


def _read_file_entry(entry: Mapping[str, Any]) -> ModelFile:
    if set(entry) != {"name", "sha256", "size_bytes"}:
        raise EngineError("a file entry has a name, a sha256 and size_bytes")
    digest, size_bytes = bytes.fromhex(entry["sha256"]), entry["size_bytes"]
    if (
        len(digest) != hashlib.sha256().digest_size
        or type(size_bytes) is not int
        or not 0 <= size_bytes < 2**63
    ):
        raise EngineError("a file entry has a digest or size out of range")
    if type(entry["name"]) is not str or Path(entry["name"]).name != entry["name"]:
        raise EngineError("a file entry names a file of the model directory itself")
    return ModelFile(entry["name"], Digest(digest), size_bytes)
