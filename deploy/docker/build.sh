#!/bin/sh
# Build one image: deploy/docker/build.sh TARGET TAG, with BASE_IMAGE set to a Python image by digest.
# The bill of materials is copied out beside it, as TARGET.cdx.json.
set -eu
cd "$(dirname "$0")/../.."
usage="usage: BASE_IMAGE=NAME@sha256:DIGEST deploy/docker/build.sh services|worker-cpu|worker-gpu TAG"

target="${1:-}"
tag="${2:-}"
case "$target" in
  services | worker-cpu | worker-gpu) ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
[ -n "$tag" ] || { echo "$usage" >&2; exit 2; }
# A tag can be moved under us: what is built on must be what was looked at.
if ! printf '%s\n' "${BASE_IMAGE:-}" | grep -Eq '^[^@[:space:]]+@sha256:[0-9a-f]{64}$'; then
  echo "BASE_IMAGE must name a Python 3.11 or 3.12 image by its digest; $usage" >&2
  exit 2
fi
[ -f constraints.txt ] || { echo "constraints.txt is missing: dependencies are installed by lock" >&2; exit 2; }

set -- --file deploy/docker/Dockerfile --target "$target" --tag "$tag" --build-arg "BASE_IMAGE=$BASE_IMAGE"
if [ -n "${TORCH_INDEX:-}" ]; then
  set -- "$@" --build-arg "TORCH_INDEX=$TORCH_INDEX"
fi
docker build "$@" .
container="$(docker create "$tag")"
trap 'docker rm "$container" >/dev/null' EXIT
docker cp "$container:/opt/pocache/sbom.cdx.json" "$target.cdx.json"
docker inspect --format '{{.Id}}' "$tag"
