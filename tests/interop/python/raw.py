"""Calls a Workload API socket with bare grpcio (gRPC C-core): what client libraries never send.

The argument is the socket's path. Prints one JSON object: for each case the status, its text and how many bytes came.
"""

import json
import sys

import grpc

HEADER = ("workload.spiffe.io", "true")
SVID = "/SpiffeWorkloadAPI/FetchX509SVID"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
# ServerReflectionRequest{list_services: ""}
LIST = b"\x3a\x00"


def same(data):
    return data


def outcome(ask):
    try:
        answer = ask()
        return {"code": "OK", "text": "", "size": len(answer), "body": answer.decode("latin-1")}
    except grpc.RpcError as error:
        return {"code": error.code().name, "text": error.details(), "size": 0, "body": ""}


def stream(channel, method, body=b"", metadata=(), wait=20):
    """The first message of a server stream."""
    calls = channel.unary_stream(method, request_serializer=same, response_deserializer=same)
    answers = calls(body, metadata=metadata, timeout=wait)
    try:
        return next(answers)
    finally:
        answers.cancel()


def both_ways(channel, method, body):
    calls = channel.stream_stream(method, request_serializer=same, response_deserializer=same)
    answers = calls(iter([body]), timeout=20)
    return next(answers)


def unary(channel, method, body=b"", metadata=()):
    calls = channel.unary_unary(method, request_serializer=same, response_deserializer=same)
    return calls(body, metadata=metadata, timeout=20)


def cases(channel):
    return {
        "health": outcome(lambda: unary(channel, "/grpc.health.v1.Health/Check")),
        "health of a service": outcome(lambda: unary(channel, "/grpc.health.v1.Health/Check", b"\x0a\x01x")),
        "reflection": outcome(lambda: both_ways(channel, REFLECTION, LIST)),
        "svid": outcome(lambda: stream(channel, SVID, metadata=(HEADER,))),
        "no header": outcome(lambda: stream(channel, SVID)),
        "header twice": outcome(lambda: stream(channel, SVID, metadata=(HEADER, HEADER))),
        "header True": outcome(lambda: stream(channel, SVID, metadata=(("workload.spiffe.io", "True"),))),
        "unknown method": outcome(lambda: unary(channel, "/SpiffeWorkloadAPI/Fetch", metadata=(HEADER,))),
        "wrong wire type": outcome(lambda: unary(channel, "/grpc.health.v1.Health/Check", b"\x08\x01")),
        "truncated": outcome(lambda: unary(channel, "/grpc.health.v1.Health/Check", b"\x0a\xff\x01x")),
        "not text": outcome(lambda: unary(channel, "/grpc.health.v1.Health/Check", b"\x0a\x01\xff")),
        "oversized": outcome(lambda: unary(channel, "/grpc.health.v1.Health/Check", b"\x0a" * (5 << 20))),
        "svid afterwards": outcome(lambda: stream(channel, SVID, metadata=(HEADER,))),
    }


def main():
    path = sys.argv[1]
    report = {}
    # What C-core sends as :authority by itself, and what older ones and other languages send.
    authorities = {"own": None, "path": path, "encoded": path.replace("/", "%2F"), "localhost": "localhost", "empty": ""}
    for name, authority in authorities.items():
        options = [] if authority is None else [("grpc.default_authority", authority)]
        with grpc.insecure_channel("unix:" + path, options=options) as channel:
            report[name] = cases(channel)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
