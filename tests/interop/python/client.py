"""Asks a Workload API for X.509 material through the public `spiffe` package (gRPC C-core).

Reads the socket from SPIFFE_ENDPOINT_SOCKET and prints one JSON object with what it saw.
With `--updates N` it stays on the stream until N contexts have come.
"""

import argparse
import json
import sys
import threading

from spiffe import WorkloadApiClient
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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()

    with WorkloadApiClient() as client:
        fetched = seen(client.fetch_x509_context())
        fetched_svid = str(client.fetch_x509_svid().spiffe_id)
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

    print(json.dumps({"fetched": fetched, "svid": fetched_svid, "bundles": bundles, "updates": updates, "failure": failure}))
    return 0 if not failure and len(updates) >= args.updates else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PySpiffeError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit(2)
