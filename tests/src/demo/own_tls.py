"""Dials the emulated Snowflake's address without asking DNS, and looks at the certificate that it meets."""

import json
import os
import socket
import ssl

address, _, port = os.environ["SANDBOX_UPSTREAM"].rpartition(":")
host = os.environ["SNOWFLAKE_HOST"]


def handshake(authorities):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in authorities:
        context.load_verify_locations(authority)
    with socket.create_connection((address, int(port)), timeout=20) as connection:
        with context.wrap_socket(connection, server_hostname=host) as tls:
            issuer = dict(pair[0] for pair in tls.getpeercert()["issuer"])
            return issuer.get("commonName", str(issuer)), "%s:%s" % tls.getpeername()[:2]


try:
    verified = "met " + handshake([os.environ["SANDBOX_UPSTREAM_CA"]])[0]
except ssl.SSLError as error:
    verified = str(error)
issuer, peer = handshake([os.environ["SANDBOX_UPSTREAM_CA"], os.environ["SSL_CERT_FILE"]])
print(json.dumps({"verified": verified, "issuer": issuer, "peer": peer}))
