#!/usr/bin/env bash
# Drives a SPIRE-compatible server and agent through one scenario with every metrics sink on, and writes what
# they exposed: families.txt ("program type name label,label"), prometheus pages, statsd lines, logs.
#
#   tests/interop/metrics/scenario.sh SERVER AGENT OUT [SECONDS]
#
# families.txt of SPIRE 1.15.3 (SECONDS=150, which covers rotations) is where golden.txt beside this file comes from;
# docs/operations.md says how to capture it anew. Needs bash, python3, curl.
set -uo pipefail
server=$1 agent=$2 out=$3 seconds=${4:-0}
rm -rf "$out"; mkdir -p "$out"
cd "$out"
read -r api sprom aprom shealth ahealth statsd dogstatsd < <(python3 - <<'PY'
import socket
held=[socket.socket() for _ in range(7)]
for s in held: s.bind(("127.0.0.1",0))
print(*[s.getsockname()[1] for s in held])
PY
)
for sink in statsd dogstatsd; do
python3 - "${!sink}" "$out/$sink.raw" <<'PY' &
import socket,sys
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(("127.0.0.1",int(sys.argv[1])))
with open(sys.argv[2],"wb",buffering=0) as f:
    while True:
        data=s.recv(65536)
        f.write(data if data.endswith(b"\n") else data+b"\n")
PY
sinks+=($!)
done
telemetry() { cat <<HCL
telemetry {
  Prometheus { port = $1 }
  Statsd = [{ address = "127.0.0.1:$statsd" }]
  DogStatsd = [{ address = "127.0.0.1:$dogstatsd" }]
  InMem {}
}
health_checks { listener_enabled = true bind_port = "$2" }
HCL
}
cat > server.conf <<HCL
server {
  bind_address = "127.0.0.1"
  bind_port = $api
  trust_domain = "example.org"
  data_dir = "$out/server"
  socket_path = "$out/server.sock"
  log_level = "debug"
  log_format = "json"
  log_file = "$out/server.log"
  audit_log_enabled = true
  ca_ttl = "${CA_TTL:-90s}"
  default_x509_svid_ttl = "20s"
  agent_ttl = "30s"
  ${SERVER_EXTRA:-}
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "$out/server.sqlite3" } }
  KeyManager "disk" { plugin_data { keys_path = "$out/keys.json" } }
  NodeAttestor "join_token" { plugin_data {} }
}
$(telemetry "$sprom" "$shealth")
HCL
cat > agent.conf <<HCL
agent {
  data_dir = "$out/agent"
  server_address = "127.0.0.1"
  server_port = $api
  socket_path = "$out/public/agent.sock"
  ${AGENT_EXTRA-admin_socket_path = \"$out/admin/admin.sock\"}
  trust_domain = "example.org"
  log_level = "debug"
  log_format = "json"
  log_file = "$out/agent.log"
  insecure_bootstrap = true
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { directory = "$out/agent" } }
  WorkloadAttestor "unix" { plugin_data {} }
}
$(telemetry "$aprom" "$ahealth")
HCL
mkdir -p server agent admin public
S() { echo "\$ spire-server $*" >> cli.log; "$server" "$@" -socketPath "$out/server.sock" >> cli.log 2>&1; }
A() { echo "\$ spire-agent $*" >> cli.log; timeout 20 "$agent" "$@" -socketPath "$out/public/agent.sock" >> cli.log 2>&1; }
await() { for _ in $(seq 300); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done; echo "gave up waiting for: $*" >&2; }
scrape() {
  curl -s "http://localhost:$sprom/" > "server.$1.prom"
  curl -s "http://localhost:$aprom/metrics" > "agent.$1.prom"
}
"$server" run -config server.conf > server.out 2>&1 & server_pid=$!
await S healthcheck
token=$("$server" token generate -socketPath "$out/server.sock" -spiffeID spiffe://example.org/node | sed 's/Token: //')
"$agent" run -config agent.conf -joinToken "$token" > agent.out 2>&1 & agent_pid=$!
await A healthcheck
me=spiffe://example.org/spire/agent/join_token/$token

entry() { S entry create -parentID "$1" -spiffeID "spiffe://example.org/$2" -selector "unix:uid:$(id -u)" "${@:3}"; }
entry "$me" workload
entry spiffe://example.org/node aliased -dns a.example.org
entry "$me" workload
entry "$me" tobegone -admin
# One item that must fail.
entry "$me/nowhere else" bad
S entry show; S entry count; S entry show -spiffeID spiffe://example.org/workload
id=$("$server" entry show -socketPath "$out/server.sock" -spiffeID spiffe://example.org/tobegone | sed -n 's/^Entry ID *: //p' | head -1)
S entry show -entryID "$id"
S entry update -entryID "$id" -parentID "$me" -spiffeID spiffe://example.org/gone -selector unix:uid:99999
S entry delete -entryID "$id"
S entry delete -entryID "$id"
S bundle show; S bundle show -format spiffe > /dev/null; "$server" bundle show -format spiffe -socketPath "$out/server.sock" > own.json
S bundle set -format spiffe -id spiffe://other.org -path own.json
S bundle list; S bundle count; S bundle list -id spiffe://other.org; S bundle delete -id spiffe://other.org
S bundle delete -id spiffe://other.org
S federation create -trustDomain fed.org -bundleEndpointURL https://127.0.0.1:1/ -bundleEndpointProfile https_web
S federation list; S federation show -trustDomain fed.org
S federation update -trustDomain fed.org -bundleEndpointURL https://127.0.0.1:2/ -bundleEndpointProfile https_web
S federation refresh -id fed.org; S federation delete -id fed.org
S agent list; S agent count; S agent show -spiffeID "$me"
S x509 mint -spiffeID spiffe://example.org/minted; S jwt mint -spiffeID spiffe://example.org/minted -audience a
S logger get; S logger set -level info; S logger reset; S logger set -level debug
S healthcheck
await A api fetch x509
A api fetch x509; A api fetch jwt -audience a -spiffeID spiffe://example.org/workload
svid=$("$agent" api fetch jwt -audience a -spiffeID spiffe://example.org/workload -socketPath "$out/public/agent.sock" | sed -n 2p | tr -d '\t')
A api validate jwt -audience a -svid "$svid"
A api validate jwt -audience b -svid "$svid"
timeout 3 "$agent" api watch -socketPath "$out/public/agent.sock" >> cli.log 2>&1
A healthcheck
curl -s "http://localhost:$shealth/ready" > server.ready; curl -s "http://localhost:$shealth/live" > server.live
curl -s "http://localhost:$ahealth/ready" > agent.ready; curl -s "http://localhost:$ahealth/live" > agent.live
scrape early
# Agents that are refused: a used token, one that is banned, one that is evicted.
sed "s/port = $aprom/port = 0/; s/\"$ahealth\"/\"0\"/; s|$out/admin/|$out/admin2/|; s|directory = \"$out/agent\"|directory = \"$out/other\"|" agent.conf > other.conf
mkdir -p other admin2
timeout 8 "$agent" run -config other.conf -dataDir "$out/other" -socketPath "$out/other/public/agent.sock" -joinToken "$token" -logFile "$out/other.log" > other.out 2>&1
second=$("$server" token generate -socketPath "$out/server.sock" | sed 's/Token: //')
timeout 8 "$agent" run -config other.conf -dataDir "$out/other" -socketPath "$out/other/public/agent.sock" -joinToken "$second" -logFile "$out/other.log" > other.out 2>&1
S agent ban -spiffeID "spiffe://example.org/spire/agent/join_token/$second"
timeout 8 "$agent" run -config other.conf -dataDir "$out/other" -socketPath "$out/other/public/agent.sock" -logFile "$out/banned.log" > banned.out 2>&1
S agent evict -spiffeID "spiffe://example.org/spire/agent/join_token/$second"
sleep "$seconds"
S localauthority x509 show; S localauthority jwt show
# Agents need to hear of a new authority before anything it signed.
S localauthority x509 prepare; sleep 6; S localauthority x509 activate -authorityID none
prepared=$("$server" localauthority x509 show -output json -socketPath "$out/server.sock" | python3 -c 'import json,sys; print(json.load(sys.stdin).get("prepared",{}).get("authority_id",""))')
active=$("$server" localauthority x509 show -output json -socketPath "$out/server.sock" | python3 -c 'import json,sys; print(json.load(sys.stdin).get("active",{}).get("authority_id",""))')
S localauthority x509 activate -authorityID "$prepared"; sleep 6
S localauthority x509 taint -authorityID "$active"; sleep 6; S localauthority x509 revoke -authorityID "$active"
S localauthority jwt prepare; sleep 6
prepared=$("$server" localauthority jwt show -output json -socketPath "$out/server.sock" | python3 -c 'import json,sys; print(json.load(sys.stdin).get("prepared",{}).get("authority_id",""))')
active=$("$server" localauthority jwt show -output json -socketPath "$out/server.sock" | python3 -c 'import json,sys; print(json.load(sys.stdin).get("active",{}).get("authority_id",""))')
S localauthority jwt activate -authorityID "$prepared"; sleep 6
S localauthority jwt taint -authorityID "$active"; sleep 6; S localauthority jwt revoke -authorityID "$active"
[ "$seconds" = 0 ] || sleep 8
S debug getinfo
kill -USR1 "$server_pid" "$agent_pid"; sleep 1
scrape late
S agent evict -spiffeID "$me"; sleep 7
curl -s "http://localhost:$aprom/metrics" > agent.evicted.prom
kill -TERM "$agent_pid" "$server_pid" 2> /dev/null; wait "$agent_pid" "$server_pid"
kill "${sinks[@]}" 2> /dev/null
python3 - <<'PY' > families.txt
import glob,re
found={}
for program in ("server","agent"):
    for page in glob.glob(program+".*.prom"):
        kinds={}
        for line in open(page):
            if line.startswith("# TYPE"):
                _,_,name,kind=line.split(); kinds[name]=kind
            elif not line.startswith("#"):
                m=re.match(r'([a-zA-Z0-9_:]+)(?:\{(.*)\})? ',line)
                if not m: continue
                name=m.group(1)
                if name not in kinds:
                    name=re.sub(r'_(sum|count|bucket)$','',name)
                labels=re.findall(r'([a-zA-Z0-9_]+)="',m.group(2) or "")
                labels=[l for l in labels if l not in ("quantile","le")]
                found.setdefault((program,kinds.get(name,"?"),name),set()).add(",".join(labels))
for (program,kind,name),labels in sorted(found.items()):
    for each in sorted(labels): print(program,kind,name,each)
PY
wc -l families.txt
