#!/usr/bin/env python3
"""Puts the same configuration files to SPIRE's programs and to these, and compares what `validate` says of them.

    compare.py REFERENCE_BIN OUR_BIN [DIRECTORY ...]

REFERENCE_BIN holds spire-server and spire-agent, OUR_BIN finial-server and finial-agent. Beside the files below, all
*.conf files under the directories are taken (conf and test of SPIRE's repository). Prints a line for each file on which the
verdicts differ, the texts of both where both refuse it, and a summary.
"""
import os, re, subprocess, sys, tempfile

BASE = {
    "server": ('trust_domain = "example.org"\n  data_dir = "{dir}"\n  socket_path = "{dir}/s.sock"\n', '''
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "{dir}/db" } }
  KeyManager "memory" { plugin_data {} }
'''),
    "agent": ('trust_domain = "example.org"\n  data_dir = "{dir}"\n  server_address = "127.0.0.1"\n  server_port = 8081\n'
              '  insecure_bootstrap = true\n', '''
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
'''),
}

# Further lines of the main block, and further text after it.
SERVER = """
bind_port = "8081"
bind_port = 0
bind_port = 70000
bind_port = "x"
bind_port = true
bind_address = "[::1]"
bind_address = "no.such.host.invalid"
bind_address = ""
trust_domain = "spiffe://example.org"
trust_domain = "spiffe://example.org/path"
trust_domain = "Example.org"
trust_domain = ""
data_dir = ""
log_level = "warn"
log_level = "WARNING"
log_level = "loud"
log_format = "JSON"
log_format = "xml"
log_file = "/no/such/dir/log"
log_source_location = "true"
log_source_location = "maybe"
ca_ttl = "soon"
ca_ttl = 5
ca_ttl = "0s"
ca_ttl = ""
ca_ttl = "1h"
ca_ttl = "-1h"
default_x509_svid_ttl = "1y"
default_x509_svid_ttl = "300h"
default_jwt_svid_ttl = "5"
agent_ttl = "1d"
ca_key_type = "EC-P256"
ca_key_type = "ec-p521"
jwt_key_type = "rsa-2048"
jwt_key_type = "ed25519"
jwt_issuer = "not a url"
jwt_issuer = 7
disable_jwt_svids = true
ca_subject {}
ca_subject { country = ["US"] organization = ["A"] common_name = "x" }
ca_subject { country = "US" }
ca_subject { unit = ["x"] }
admin_ids = ["spiffe://example.org/a", "spiffe://other.org/b"]
admin_ids = "spiffe://example.org/a"
admin_ids = ["https://x"]
admin_ids = []
audit_log_enabled = 1
audit_log_enabled = "yes"
max_attested_node_info_staleness = "5s"
max_attested_node_info_staleness = "x"
max_attested_node_info_staleness = ""
prune_attested_nodes_expired_for = "1h"
prune_attested_nodes_expired_for = "x"
prune_attested_nodes_batch_size = -1
prune_tofu_nodes = true
proxy_protocol_trusted_cidrs = ["10.0.0.0/8", "::1/128"]
proxy_protocol_trusted_cidrs = ["10.0.0.1"]
proxy_protocol_trusted_cidrs = ["10.0.0.0/33"]
profiling_enabled = true
profiling_port = 6060
profiling_names = ["heap"]
ratelimit { attestation = false signing = false }
ratelimit { attestation = "no" }
ratelimit { attest = true }
unknown = 1
socket_path = ""
experimental {}
experimental { unknown = 1 }
experimental { agent_spiffe_id_as_selector = true }
experimental { auth_opa_policy_engine { local { rego_path = "/no/such/file" } } }
experimental { cache_reload_interval = "1s" full_cache_reload_interval = "1h" }
experimental { cache_reload_interval = "x" }
experimental { full_cache_reload_interval = "1s" }
experimental { events_based_cache = true }
experimental { events_based_cache = true full_cache_reload_interval = "1s" }
experimental { prune_events_older_than = "x" }
experimental { event_timeout = "1m" sql_transaction_timeout = "1m" }
experimental { sql_transaction_timeout = "1m" }
experimental { require_pq_kem = true }
experimental { feature_flags = ["i_am_a_test_flag"] }
experimental { feature_flags = ["b", "a"] }
experimental { wit_key_type = "x" }
experimental { wit_key_type = "ec-p256" wit_issuer = "x" }
experimental { named_pipe_name = "x" }
federation {}
federation { unknown = 1 }
federation { bundle_endpoint { address = "0.0.0.0" port = 8443 unknown = 1 } }
federation { federates_with "other.org" { bundle_endpoint_url = "http://x" } }
federation { federates_with "other.org" { bundle_endpoint_url = "https://x" } }
ca_ttl = "1h" ca_ttl = "2h"
""".strip().split("\n")

AGENT = """
server_port = "8081"
server_port = "x"
server_address = ""
socket_path = ""
trust_bundle_path = "/no/such/file"
trust_bundle_url = "http://x"
trust_bundle_format = "der"
join_token = "x" join_token_file = "/no/such/file"
join_token_file = "/no/such/file"
workload_x509_svid_key_type = "ec-p384"
workload_x509_svid_key_type = "rsa-4096"
availability_target = "23h"
availability_target = "24h"
x509_svid_cache_max_size = -1
x509_svid_cache_max_size = "10"
jwt_svid_cache_max_size = -1
authorized_delegates = ["spiffe://example.org/a"]
authorized_delegates = ["x"]
admin_socket_path = "/tmp/spire-agent/public/admin.sock"
admin_socket_path = "/tmp/spire-agent/public/x/admin.sock"
admin_socket_path = "/tmp/spire-agent-admin/admin.sock"
allowed_foreign_jwt_claims = ["a"]
allow_unauthenticated_verifiers = true
rebootstrap_mode = "never"
rebootstrap_mode = "always"
rebootstrap_mode = "sometimes"
rebootstrap_delay = "x"
sds { default_svid_name = "x" }
sds { unknown = 1 }
unknown = 1
log_level = "loud"
experimental { sync_interval = "1s" }
experimental { sync_interval = "x" }
experimental { unknown = 1 }
experimental { jwt_svid_cache_hit_timeout = "1s" }
experimental { jwt_svid_cache_hit_timeout = "10s" }
experimental { use_sync_authorized_entries = false }
experimental { ratelimit { fetch_x509_svid = 5 } }
experimental { ratelimit { unknown = 5 } }
experimental { require_pq_kem = true }
experimental { named_pipe_name = "x" }
""".strip().split("\n")

BOTH_AFTER = """
unknown = 1
unknown {}
telemetry {}
telemetry { unknown = 1 }
telemetry { Prometheus { port = 9988 } }
telemetry { Prometheus { host = "0.0.0.0" port = "9988" } }
telemetry { Prometheus { unknown = 1 } }
telemetry { Statsd = [{ address = "127.0.0.1:8125" }] }
telemetry { Statsd = [{ address = "127.0.0.1:8125" unknown = 1 }] }
telemetry { DogStatsd = [{ address = "127.0.0.1:8125" }, { address = "127.0.0.1:8126" }] }
telemetry { M3 = [{ address = "127.0.0.1:9000" env = "x" }] }
telemetry { InMem {} }
telemetry { InMem { unknown = 1 } }
telemetry { MetricPrefix = "x" EnableTrustDomainLabel = true EnableHostnameLabel = false }
telemetry { AllowedPrefixes = ["x"] BlockedLabels = ["y"] }
health_checks { listener_enabled = true bind_port = "8080" }
health_checks { listener_enabled = true bind_port = 8080 }
health_checks { unknown = 1 }
""".strip().split("\n")

PLUGINS = {
    "server": """
DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "x" } }
KeyManager "disk" { plugin_data {} }
KeyManager "nosuch" { plugin_data {} }
NodeAttestor "join_token" { plugin_data {} }
NodeAttestor "join_token" { plugin_cmd = "/bin/true" }
NodeAttestor "nosuch" { plugin_data {} }
NodeAttestor "join_token" { enabled = false }
UpstreamAuthority "disk" { plugin_data {} }
UpstreamAuthority "disk" { plugin_data { unknown = 1 } }
Nosuch "x" { plugin_data {} }
Notifier "k8sbundle" { enabled = false }
""".strip().split("\n"),
    "agent": """
WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }
WorkloadAttestor "nosuch" { plugin_data {} }
WorkloadAttestor "docker" { plugin_data {} }
NodeAttestor "x509pop" { plugin_data {} }
KeyManager "disk" { plugin_data { directory = "/tmp" } }
SVIDStore "nosuch" { plugin_data {} }
""".strip().split("\n"),
}


def keys_of(line):
    """The names that a line sets at its top, so that it replaces those of the base."""
    return re.findall(r"(?:^|\s)(\w+) =", re.sub(r"\{.*\}", "", line))


def written(kind):
    head, plugins = BASE[kind]
    name = kind

    def text(block, after="", more=""):
        return name + " {\n  " + block + "\n}\nplugins {" + plugins + more + "}\n" + after + "\n"

    def without(lines, names):
        return "\n".join(line for line in lines.split("\n") if not any(line.strip().startswith(n + " ") for n in names))

    yield "base", text(head)
    for line in SERVER if kind == "server" else AGENT:
        yield line, text(without(head, keys_of(line)) + "  " + line.replace('" ca', '"\n ca').replace('" join', '"\n join'))
    for line in BOTH_AFTER:
        yield line, text(head, after=line)
    for line in PLUGINS[kind]:
        yield line, text(head, more="  " + line + "\n")
    yield "empty", ""
    yield "no plugins", name + " {\n" + head + "\n}\n"
    yield "empty plugins", name + " {\n" + head + "\n}\nplugins {}\n"
    yield "no " + kind, "plugins {" + plugins + "}\n"
    yield "syntax", name + " {\n"


def verdict(program, text, path):
    ran = subprocess.run([program, "validate", "-config", path], capture_output=True, text=True, timeout=60)
    said = (ran.stdout + ran.stderr).strip().replace(path, "CONFIG")
    said = re.sub(r"^SPIRE \w+ configuration file is invalid[:.]?\s*", "", said)
    return ran.returncode == 0, " / ".join(line.strip() for line in said.split("\n") if line.strip())


def main():
    reference, ours, directories = sys.argv[1], sys.argv[2], sys.argv[3:]
    files = [(kind, what, text) for kind in BASE for what, text in written(kind)]
    for directory in directories:
        for folder, _, names in os.walk(directory):
            for name in sorted(names):
                if name.endswith(".conf") or ".conf." in name:
                    text = open(os.path.join(folder, name), errors="replace").read()
                    kinds = [kind for kind in BASE if re.search(r'^\s*"?%s"?\s*[{:=]' % kind, text, re.M)]
                    files += [(kind, os.path.join(folder, name), text) for kind in kinds]
    counts, differ = {}, []
    for kind, what, text in files:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, kind + ".conf")
            with open(path, "w") as out:
                out.write(text.replace("{dir}", folder))
            theirs = verdict(os.path.join(reference, "spire-" + kind), text, path)
            mine = verdict(os.path.join(ours, "finial-" + kind), text, path)
        key = ("valid" if theirs[0] else "invalid", "valid" if mine[0] else "invalid")
        counts[key] = counts.get(key, 0) + 1
        if theirs[0] != mine[0]:
            differ.append((kind, what, theirs, mine))
        elif not theirs[0]:
            print(f"BOTH REFUSE {kind}: {what}\n    {theirs[1]}\n    {mine[1]}")
    for kind, what, theirs, mine in differ:
        print(f"DIFFER {kind}: {what}\n    {theirs[0]} {theirs[1]}\n    {mine[0]} {mine[1]}")
    for (theirs, mine), count in sorted(counts.items()):
        print(f"{count} files: {theirs} for SPIRE, {mine} for Finial")


main()
