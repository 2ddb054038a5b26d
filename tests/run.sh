#!/usr/bin/env bash
# Passes the tests: sets up what they need, then checks and runs everything.
#   tests/run.sh            all of it (what CI runs)
#   tests/run.sh peers      only installs the foreign clients and databases the tests talk to
#   tests/run.sh fuzz       only the fuzz targets, FUZZ_SECONDS (10) each
#   tests/run.sh FILTER     all checks, but only the tests whose name contains FILTER
# Under CI=true a peer that can't be installed is a failure; elsewhere it is skipped, and said so loudly.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
peers=$target/peers
export FINIAL_PEERS=$peers
mkdir -p "$peers"
skipped=()
started=$SECONDS

say() { printf '\n\033[1m[%4d s] %s\033[0m\n' "$((SECONDS - started))" "$*"; }

# missing NAME WHY: a failure in CI, a loud skip on a laptop.
missing() {
  if [ "${CI:-}" = true ]; then
    echo "MISSING: $1: $2" >&2
    exit 1
  fi
  skipped+=("$1: $2")
}

# need COMMAND PACKAGE: installs a Debian package where the command is not there and we may.
need() {
  command -v "$1" >/dev/null && return 0
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    [ -n "${apt_updated:-}" ] || { apt-get update -qq && apt_updated=1; }
    apt-get install -y -qq "$2" >/dev/null
  fi
  command -v "$1" >/dev/null
}

install_peers() {
  say "foreign clients: Python (gRPC C-core), Envoy, Go, Java"
  if need python3 python3-venv; then
    [ -x "$peers/python/bin/python" ] || python3 -m venv "$peers/python"
    "$peers/python/bin/pip" install -q --disable-pip-version-check -r tests/interop/python/requirements.txt ||
      missing "python client" "pip could not install tests/interop/python/requirements.txt"
  else
    missing "python client" "python3 is not installed"
  fi
  if need go golang; then
    (cd tests/interop/go && go build -o "$peers/go-client" .) || missing "go client" "go build failed"
  else
    missing "go client" "go is not installed"
  fi
  if need mvn maven && need java default-jre-headless; then
    mvn -q -B -f tests/interop/java/pom.xml package -Dinterop.build="$peers/java" ||
      missing "java client" "mvn package failed"
  else
    missing "java client" "maven or java is not installed"
  fi
  need haproxy haproxy || missing "haproxy" "the haproxy command is not installed"
  need curl curl || missing "curl" "the curl command is not installed"
  need openssl openssl || missing "openssl" "the openssl command is not installed"
}

# The tests of the store start servers of their own, as the users that Debian's packages make.
install_databases() {
  say "databases: PostgreSQL, MariaDB"
  ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || need pg_ctl postgresql || true
  ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing "PostgreSQL" "postgresql is not installed"
  need mariadbd mariadb-server || missing "MariaDB" "mariadb-server is not installed"
}

lint() {
  say "format, lints, licences"
  cargo fmt --all --check
  cargo clippy --workspace --all-targets --quiet -- -D warnings
  if ! command -v cargo-deny >/dev/null && [ ! -x "$target/tools/bin/cargo-deny" ]; then
    cargo install --quiet --locked --root "$target/tools" cargo-deny@0.20.2 ||
      missing "cargo-deny" "cargo install cargo-deny failed"
  fi
  if command -v cargo-deny >/dev/null || [ -x "$target/tools/bin/cargo-deny" ]; then
    PATH="$PATH:$target/tools/bin" cargo deny --log-level error check bans licenses sources
  fi
}

tests() {
  say "tests"
  cargo build --workspace --bins --quiet
  cargo test --workspace --quiet --no-fail-fast -- ${1:+"$1"}
}

fuzz_smoke() {
  say "fuzz targets, a few seconds each"
  if ! rustup toolchain list 2>/dev/null | grep -q nightly; then
    missing "fuzzing" "no nightly toolchain (rustup toolchain install nightly)"
    return
  fi
  if ! command -v cargo-fuzz >/dev/null && [ ! -x "$target/tools/bin/cargo-fuzz" ]; then
    cargo install --quiet --locked --root "$target/tools" cargo-fuzz@0.13.2 ||
      { missing "fuzzing" "cargo install cargo-fuzz failed"; return; }
  fi
  export PATH=$PATH:$target/tools/bin
  # No sanitizer, since the code is safe Rust, and many codegen units: the build takes most of the time here.
  local options=(--fuzz-dir tests/fuzz --sanitizer none --codegen-units 16 --target-dir "$target/fuzz")
  cargo +nightly fuzz build "${options[@]}"
  local one found dictionary programs
  programs=$target/fuzz/$(rustc +nightly -vV | sed -n 's/^host: //p')/release
  for one in $(sed -n 's/^name = "\(.*\)"$/\1/p' tests/fuzz/Cargo.toml | tail -n +2); do
    # Inputs that reach something new go to the first folder; the seeds are only read.
    found=$target/fuzz-found/$one
    mkdir -p "$found/corpus"
    dictionary=tests/fuzz/dictionaries/$one.dict
    [ -f "$dictionary" ] || dictionary=tests/fuzz/dictionaries/wire.dict
    "$programs/$one" "$found/corpus" "tests/fuzz/seeds/$one" -artifact_prefix="$found/" -dict="$dictionary" \
      -max_total_time="${FUZZ_SECONDS:-10}" -verbosity=0 -rss_limit_mb=4096 ||
      { echo "FUZZ TARGET $one FAILED: the input is in $found; $programs/$one FILE runs it again" >&2; exit 1; }
    echo "$one: nothing found"
  done
}

case "${1:-}" in
  peers) install_peers; install_databases ;;
  fuzz) fuzz_smoke ;;
  *)
    install_peers
    install_databases
    lint
    tests "${1:-}"
    fuzz_smoke
    ;;
esac

if [ ${#skipped[@]} -gt 0 ]; then
  printf '\n!!! SKIPPED, so this run proves less than CI does:\n'
  printf '!!!   %s\n' "${skipped[@]}"
fi
say "done"
