#!/usr/bin/env bash
# Installs what Shoal needs and this machine lacks: Debian packages by apt-get, npm packages by npm ci. Installs nothing twice.
# Usage: prepare.sh run|test   ("test" adds what only the tests use)
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

wanted="${1:-run}"
missing=()
need() { # command, Debian package
  command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

check_node() {
  if ! node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 20) ? 0 : 1)'; then
    echo "Shoal needs Node 20.20 or newer; 'node --version' says: $(node --version 2>/dev/null || echo 'not found')" >&2
    exit 1
  fi
}

install_missing() {
  [ "${#missing[@]}" -eq 0 ] && return
  local as_root=()
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing: ${missing[*]}. There is no apt-get here; install them by your system's means and try again." >&2
    exit 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
      echo "Missing: ${missing[*]}. You are not root and there is no sudo; as root run: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "Installing Debian packages: ${missing[*]}"
  # Services that a package starts by itself would only take ports; Shoal starts its own.
  local no_start=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1)
  "${as_root[@]}" "${no_start[@]}" apt-get update -qq
  "${as_root[@]}" "${no_start[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_npm() {
  if [ -e node_modules/.package-lock.json ] && [ ! package-lock.json -nt node_modules/.package-lock.json ]; then return; fi
  echo "Installing npm packages (npm ci)"
  npm ci --include=dev --loglevel=error
  touch node_modules/.package-lock.json
}

check_node
need nats-server nats-server
need redis-server redis-server
if [ "$wanted" = test ]; then
  need git git
  need chromium chromium
  need promtool prometheus
  need protoc protobuf-compiler
  need grpc_python_plugin protobuf-compiler-grpc
  [ -e /usr/include/google/protobuf/struct.proto ] || missing+=(libprotobuf-dev)
  /usr/bin/python3 -c 'import grpc' 2>/dev/null || missing+=(python3-grpcio)
fi
install_missing
install_npm
