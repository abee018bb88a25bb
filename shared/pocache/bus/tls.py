"""TLS between clients and the server: who is believed, and what is shown. TLS 1.3, always verified, host names too.

Where the server demands certificates (``verify``), a client without one is refused before it can say anything.
"""

from __future__ import annotations

import json
import ssl

from pocache.protocol.errors import ConfigError
from pocache.runtime.network import TlsFiles


def make_client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return what a client's connections are made with. Raises ConfigError on files that are none."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(files.authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if files.certificate is not None:
            context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the TLS files beside {files.authority}: {error}") from error
    return context


def render_server_tls(files: TlsFiles) -> str:
    """Return the server's ``tls`` block: its own certificate, and whose clients it lets in; all must show one."""
    assert files.certificate is not None
    return (
        f"tls {{\n  cert_file: {json.dumps(str(files.certificate))}\n  key_file: {json.dumps(str(files.key))}\n"
        f'  ca_file: {json.dumps(str(files.authority))}\n  verify: true\n  min_version: "1.3"\n  timeout: 5\n}}\n'
    )
