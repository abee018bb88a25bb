"""The doctor's look at a network directory: genesis, trust file, keys and who can read them. Needs no bus."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pocache.protocol.errors import PocacheError
from pocache.runtime.network import SERVICE_ROLES, NetworkDirectory, load_signing_key
from pocache_cli.doctor import FAIL, OK, SKIP, WARN, Finding, get_trust_file, run_check

_SECRETS: Final = ("keys/*.seed", "transport/*.seed", "secrets/*", "tls/*.key", "trust/**/*.seed")
_NAMED_MAX: Final = 5


def examine_directory(directory: NetworkDirectory) -> Iterator[Finding]:
    """Yield what is found in a network directory."""
    genesis = run_check(
        "genesis",
        lambda: f"network {directory.genesis.name!r}, id {directory.genesis.network_id.hex()[:16]}…",
        "make a network with `pocache up` or `pocache keys`, or say where it is with --network-dir",
    )
    yield genesis
    if genesis.status == FAIL:
        return
    yield _examine_rules(directory)
    yield _examine_trust(directory)
    yield from _examine_modes(directory.path)
    yield from _examine_keys(directory)


def _examine_rules(directory: NetworkDirectory) -> Finding:
    genesis = directory.genesis
    if genesis.demo:
        return Finding(
            "rules", WARN, "a demonstration network: workers may be told to cheat on it", "not for production"
        )
    if genesis.chain.source == "local":
        detail = "the beacon is local: its operator knows the rounds to come"
        return Finding(
            "rules",
            WARN,
            detail,
            "choose a threshold beacon or a relay when the operator is not to be trusted",
        )
    return Finding(
        "rules", OK, f"{genesis.rules.name}, beacon {genesis.chain.source}, period {genesis.chain.period_s} s"
    )


def _examine_trust(directory: NetworkDirectory) -> Finding:
    from pocache.receipt.trust import load_trust

    file = get_trust_file(directory.path)
    if not file.exists():
        return Finding("trust file", SKIP, f"no {file.name} here: verifying a receipt will need one")
    try:
        trust = load_trust(file)
    except PocacheError as error:
        return Finding(
            "trust file", FAIL, str(error), "take it from whoever runs the network, and check it with them"
        )
    if trust.network_id != directory.genesis.network_id.hex():
        detail = f"it pins network {trust.network_id[:16]}…, the genesis is {directory.genesis.network_id.hex()[:16]}…"
        return Finding(
            "trust file", FAIL, detail, "one of the two is another network's: ask for the right one"
        )
    return Finding("trust file", OK, "pins this network")


def _examine_modes(path: Path) -> Iterator[Finding]:
    files = [file for pattern in _SECRETS for file in sorted(path.glob(pattern)) if file.is_file()]
    open_files = [file for file in files if stat.S_IMODE(file.stat().st_mode) & 0o077]
    if open_files:
        shown = ", ".join(
            f"{file.relative_to(path)} ({stat.S_IMODE(file.stat().st_mode):03o})"
            for file in open_files[:_NAMED_MAX]
        )
        more = f" and {len(open_files) - _NAMED_MAX} more" if len(open_files) > _NAMED_MAX else ""
        names = " ".join(str(file) for file in open_files[:_NAMED_MAX])
        yield Finding("file modes", FAIL, f"others can read {shown}{more}", f"chmod 600 {names}")
    elif files:
        yield Finding("file modes", OK, f"{len(files)} secret files are their owner's alone")
    else:
        yield Finding("file modes", SKIP, "no keys lie here")


def _examine_keys(directory: NetworkDirectory) -> Iterator[Finding]:
    found, broken = {}, []
    for file in sorted((directory.path / "keys").glob("*.seed")):
        try:
            found[file.stem] = load_signing_key(file).participant_id
        except PocacheError as error:
            broken.append(str(error))
    for reason in broken[:_NAMED_MAX]:
        yield Finding("keys", FAIL, reason, "restore the key from its backup, or fix its mode")
    genesis = directory.genesis
    wrong = [
        role.value
        for role in SERVICE_ROLES
        if found.get(role.value, genesis.signer(role)) != genesis.signer(role)
    ]
    if wrong:
        detail = f"the keys of {', '.join(wrong)} are not those that the genesis names"
        yield Finding("keys", FAIL, detail, "these keys belong to another network")
    missing = [name for name in found if not (directory.path / "transport" / f"{name}.seed").exists()]
    if missing:
        detail = f"{', '.join(missing[:_NAMED_MAX])}: a protocol key without a transport key"
        yield Finding("keys", FAIL, detail, "without transport/NAME.seed a process cannot reach the bus")
    if not (broken or wrong or missing):
        yield Finding(
            "keys",
            OK if found else SKIP,
            f"{len(found)} protocol keys read" if found else "no protocol key lies here",
        )
