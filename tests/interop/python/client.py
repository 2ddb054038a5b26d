"""Asks a Workload API for X.509 material and JWT-SVIDs through the public `spiffe` package (gRPC C-core).

Reads the socket from SPIFFE_ENDPOINT_SOCKET and prints one JSON object with what it saw.
With `--updates N` it stays on the stream until N contexts have come.
"""

import argparse
import json
import sys
import threading

from spiffe import JwtSvid, WorkloadApiClient
from spiffe.errors import PySpiffeError


def seen(context):
    return {
        "svids": [
            {
                "id": str(svid.spiffe_id),
                "chain": len(svid.cert_chain),
                "serial": str(svid.leaf.serial_number),
            }
            for svid in context.x509_svids
        ],
        "bundles": {
            bundle.trust_domain.name: len(bundle.x509_authorities)
            for bundle in context.x509_bundle_set.bundles
        },
    }


def jwt(client):
    """Tokens for two audiences, judged here by the bundle and by the agent; and a refusal."""
    audience = {"reports", "billing"}
    svids = client.fetch_jwt_svids(audience)
    bundles = client.fetch_jwt_bundles()
    verified, validated, refused = [], [], ""
    for svid in svids:
        bundle = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        verified.append(str(JwtSvid.parse_and_validate(svid.token, bundle, {"reports"}).spiffe_id))
        validated.append(str(client.validate_jwt_svid(svid.token, "billing").spiffe_id))
    one = client.fetch_jwt_svid(audience, subject=svids[-1].spiffe_id)
    try:
        client.validate_jwt_svid(one.token, "other")
    except PySpiffeError as error:
        refused = str(error)
    return {
        "ids": [str(svid.spiffe_id) for svid in svids],
        "one": str(one.spiffe_id),
        "verified": verified,
        "validated": validated,
        "refused": refused,
        "keys": {bundle.trust_domain.name: len(bundle.jwt_authorities) for bundle in bundles.bundles},
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()

    with WorkloadApiClient() as client:
        fetched = seen(client.fetch_x509_context())
        fetched_svid = str(client.fetch_x509_svid().spiffe_id)
        tokens = jwt(client)
        bundles = sorted(b.trust_domain.name for b in client.fetch_x509_bundles().bundles)

        updates, failure, done = [], [], threading.Event()

        def on_update(context):
            updates.append(seen(context))
            if len(updates) >= args.updates:
                done.set()

        def on_error(error):
            failure.append(str(error))
            done.set()

        subscription = client.stream_x509_contexts(on_update, on_error)
        done.wait(args.seconds)
        subscription.cancel()

    print(json.dumps({"fetched": fetched, "svid": fetched_svid, "bundles": bundles, "updates": updates, "failure": failure, "jwt": tokens}))
    return 0 if not failure and len(updates) >= args.updates else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PySpiffeError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit(2)
