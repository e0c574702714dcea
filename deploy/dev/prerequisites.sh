#!/usr/bin/env bash
# Says in one sentence each what this machine lacks, and fails if anything does.
# usage: prerequisites.sh NEED...    NEED: rust agent cc go python disk
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
missing=0

lack() {
  echo "error: $*" >&2
  missing=1
}

have() { command -v "$1" >/dev/null 2>&1; }

# at_least VERSION MINIMUM
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

need_cc() {
  have cc || lack "A C compiler (cc) is missing: install one, on Debian with 'apt-get install gcc libc6-dev'."
}

need_rust() {
  local want
  want=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$root/rust-toolchain.toml")
  if ! have cargo; then
    lack "Rust is missing: install rustup from https://rustup.rs; it brings Rust $want by itself."
  elif ! (cd "$root" && cargo --version) >/dev/null 2>&1; then
    lack "Rust $want, which rust-toolchain.toml asks for, is not installed and could not be downloaded: run 'rustup toolchain install $want'."
  elif ! at_least "$(cd "$root" && cargo --version | cut -d' ' -f2)" "$want"; then
    lack "Rust $want or newer is needed, this is $(cd "$root" && cargo --version | cut -d' ' -f2): update it, best by rustup from https://rustup.rs."
  fi
}

# The agent is a static binary: it needs the standard library for musl, which rustup installs on demand.
need_agent() {
  local target
  target="$(uname -m)-unknown-linux-musl"
  have rustc || return 0 # need_rust says it
  [ -d "$(cd "$root" && rustc --print sysroot)/lib/rustlib/$target" ] && return 0
  if have rustup; then
    echo "installing the Rust target $target (once) ..." >&2
    (cd "$root" && rustup target add "$target") >&2 && return 0
  fi
  lack "The Rust target $target is missing and could not be installed: run 'rustup target add $target'."
}

need_go() {
  local want found
  want=$(sed -n 's/^go //p' "$here/kubernetes/go.mod")
  if ! have go; then
    lack "Go is missing: install Go $want or newer from https://go.dev/dl; the test control plane is built with it."
    return
  fi
  # Inside the module an older Go either fetches the toolchain that go.mod names or refuses.
  found=$(cd "$here/kubernetes" && go env GOVERSION 2>/dev/null || true)
  at_least "${found#go}" "$want" ||
    lack "Go $want or newer is needed, this is $(cd / && go version | cut -d' ' -f3): install it from https://go.dev/dl."
}

need_python() {
  if ! have python3; then
    lack "Python 3 is missing: install Python 3.11 or newer, on Debian with 'apt-get install python3 python3-venv'."
  elif ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    lack "Python 3.11 or newer is needed, this is $(python3 --version)."
  elif ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    lack "Python's venv module is missing: on Debian 'apt-get install python3-venv'."
  fi
}

# Free space where the caches are: the Go build of Kubernetes alone writes about 4 GB.
need_disk() {
  local dir free_kb need_kb=$((6 * 1024 * 1024))
  for dir in "${XDG_CACHE_HOME:-$HOME/.cache}" "$(have go && go env GOCACHE || echo "$HOME")"; do
    mkdir -p "$dir"
    free_kb=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
    if [ "$free_kb" -lt "$need_kb" ]; then
      lack "The disk is nearly full: building the tools needs 6 GB below $dir, $((free_kb / 1024)) MB are free."
      return
    fi
  done
}

for need in "$@"; do
  case $need in
    rust | agent | cc | go | python | disk) "need_$need" ;;
    *) lack "prerequisites.sh does not know '$need'." ;;
  esac
done
exit "$missing"
