"""Write what is installed beside this interpreter as a CycloneDX bill of materials, on standard output.

Covers Python distributions, with their licences as they state them. Not covered: the base image's own packages, and
libraries inside of wheels beyond the wheel's name.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from typing import Any


def main() -> None:
    """Write the document, one component for each distribution, in the order of their names."""
    components = sorted((describe(one) for one in distributions()), key=lambda one: str(one["purl"]))
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "proof-of-cache"}},
        "components": components,
    }
    json.dump(document, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


def describe(one: Distribution) -> dict[str, Any]:
    """Return a distribution as a component."""
    name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
    found: dict[str, Any] = {
        "type": "library",
        "name": name,
        "version": one.version,
        "purl": f"pkg:pypi/{name}@{one.version}",
    }
    licence = one.metadata.get("License-Expression") or one.metadata.get("License")
    if licence and "\n" not in licence:
        found["licenses"] = [{"license": {"name": licence}}]
    return found


if __name__ == "__main__":
    main()
