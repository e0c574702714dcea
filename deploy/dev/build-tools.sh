#!/usr/bin/env bash
# Builds, once, what demo and tests start besides our own programs: etcd, the Kubernetes control plane, kubectl, kwok,
# versitygw, Python environments and npm packages. They land in the user's cache under a hash of what decides their content.
#
# usage: build-tools.sh [--test | --bench]
#   --test    also what only tests need: the providers' own clients, a second S3 server, JAX
#   --bench   also what only measurements need: JobSet, the yardstick
#
# Prints one line on stdout: a directory with a link to each of them (the value of TRADEWIND_TOOLS). Progress goes to
# stderr; with everything in place it says nothing and takes a moment. What KUBEBUILDER_ASSETS holds is taken from there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/tradewind/tools"
kubernetes_version=$(awk '$1 == "k8s.io/kubernetes" && $2 ~ /^v[0-9.]+$/ { print substr($2, 2) }' "$here/kubernetes/go.mod")
[ -n "$kubernetes_version" ] || { echo "error: kubernetes/go.mod does not require k8s.io/kubernetes at a release" >&2; exit 1; }

# A second S3 server, from crates.io with the lock file that it was published with.
s3s_fs_version=0.14.1

environments=(demo)
crates=()
packages=()
yardsticks=()
files=()
case "${1:-}" in
  '') ;;
  --test) environments+=(test samples) crates+=("s3s-fs $s3s_fs_version binary 1 min") packages+=(runpod) ;;
  --bench)
    yardsticks+=("jobset jobset sigs.k8s.io/jobset 2 min")
    # name, module directory, Go module, file in it
    files+=("jobset-crd.yaml jobset sigs.k8s.io/jobset config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml")
    ;;
  *) echo "usage: build-tools.sh [--test | --bench]" >&2; exit 2 ;;
esac

# Without the stamps kubectl and the API server call themselves v0.0.0, and clients that compare versions misbehave.
stamps="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  major=${kubernetes_version%%.*} rest=${kubernetes_version#*.}
  stamps+=" -X $package.gitVersion=v$kubernetes_version -X $package.gitMajor=$major -X $package.gitMinor=${rest%%.*}"
  stamps+=" -X $package.gitTreeState=clean -X $package.gitCommit= -X $package.buildDate=2026-01-01T00:00:00Z"
done

# name, module directory, package, how long it takes on two cores
tools=(
  "etcd etcd-kwok go.etcd.io/etcd/server/v3 20 s"
  "versitygw versitygw github.com/versity/versitygw/cmd/versitygw 1 min"
  "kube-apiserver kubernetes k8s.io/kubernetes/cmd/kube-apiserver 4 min"
  "kube-controller-manager kubernetes k8s.io/kubernetes/cmd/kube-controller-manager 1 min"
  "kube-scheduler kubernetes k8s.io/kubernetes/cmd/kube-scheduler 5 s"
  "kubectl kubernetes k8s.io/kubernetes/cmd/kubectl 20 s"
  "kwok etcd-kwok sigs.k8s.io/kwok/cmd/kwok 90 s"
  "${yardsticks[@]}"
)

have() { command -v "$1" >/dev/null 2>&1; }
say() { echo "tools: $*" >&2; }
short_hash() { sha256sum | cut -c1-16; }
ldflags_of() { if [ "$1" = kubernetes ]; then echo "$stamps"; else echo "-s -w"; fi; }

# Where a tool of a module belongs: the hash covers the pinned sources, the build flags and the machine's kind.
module_directory() {
  echo "$cache/$1-$({ cat "$here/$1/go.mod" "$here/$1/go.sum"; ldflags_of "$1"; uname -m; } | short_hash)"
}

# Where a program from crates.io belongs.
crate_directory() {
  echo "$cache/$1-$({ echo "$*"; uname -m; } | short_hash)"
}

environment_requirements() {
  if [ "$1" = demo ]; then echo "$here/python/requirements.txt"; else echo "$here/python/requirements-$1.txt"; fi
}

environment_directory() {
  echo "$cache/python-$1-$({ cat "$(environment_requirements "$1")"; python3 -c 'import sys; print(sys.version, sys.prefix)'; } | short_hash)"
}

# Where an npm package and all that it pulls in belongs: pinned by deploy/dev/npm/NAME/package-lock.json.
package_directory() {
  echo "$cache/npm-$1-$(cat "$here/npm/$1/package.json" "$here/npm/$1/package-lock.json" | short_hash)"
}

# Fills `links` (name -> path) and says by its status whether all of it is there already.
declare -A links
plan() {
  local line name module directory complete=0
  for line in "${tools[@]}"; do
    read -r name module _ <<<"$line"
    if [ -x "${KUBEBUILDER_ASSETS:-/nonexistent}/$name" ]; then
      links[$name]="$(cd "$KUBEBUILDER_ASSETS" && pwd)/$name"
    else
      links[$name]="$(module_directory "$module")/$name"
      [ -x "${links[$name]}" ] || complete=1
    fi
  done
  for line in "${files[@]}"; do
    read -r name module _ <<<"$line"
    links[$name]="$(module_directory "$module")/$name"
    [ -e "${links[$name]}" ] || complete=1
  done
  for line in "${crates[@]}"; do
    read -r name module _ <<<"$line"
    links[$name]="$(crate_directory "$name" "$module")/bin/$name"
    [ -x "${links[$name]}" ] || complete=1
  done
  for name in "${environments[@]}"; do
    directory=$(environment_directory "$name")
    links[python-$name]=$directory
    [ -e "$directory/.complete" ] || complete=1
  done
  # Node.js serves one test only, which says so itself where this is missing.
  if have node && have npm; then
    for name in "${packages[@]}"; do
      links[npm-$name]=$(package_directory "$name")
      [ -d "${links[npm-$name]}" ] || complete=1
    done
  fi
  return "$complete"
}

# failed WHAT LOGFILE: names the likely cause in one sentence.
failed() {
  tail -n 15 "$2" >&2
  if grep -q 'no space left on device' "$2"; then
    say "error: The disk is full; $1 could not be built."
  elif grep -qE 'dial tcp|i/o timeout|no such host|TLS handshake|Could not find a version|Max retries exceeded|failed to download|spurious network error|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ECONNREFUSED' "$2"; then
    say "error: $1 could not be downloaded; is the network there, and the proxy set? The whole log is $2."
  else
    say "error: $1 could not be built; the whole log is $2."
  fi
  exit 1
}

build_tool() {
  local name=$1 module=$2 package=$3 takes=$4 out=${links[$1]} log="$cache/log/$1.log" start=$SECONDS
  [ -x "$out" ] && return
  say "building $name (once, about $takes) ..."
  mkdir -p "${out%/*}"
  partial="$out.partial"
  # Settings of the user that would change what is built (GOFLAGS, a workspace) are put aside.
  (cd "$here/$module" && CGO_ENABLED=0 GOWORK=off GOFLAGS='' GOOS='' GOARCH='' \
    go build -mod=readonly -trimpath -buildvcs=false -ldflags "$(ldflags_of "$module")" -o "$partial" "$package") \
    >"$log" 2>&1 9>&- || failed "$name" "$log"
  mv "$partial" "$out"
  say "built $name in $((SECONDS - start)) s"
}

# A file that a Go module brings beside its code.
copy_file() {
  local name=$1 directory=$2 module=$3 path=$4 out=${links[$1]} log="$cache/log/$1.log"
  [ -e "$out" ] && return
  mkdir -p "${out%/*}"
  partial="$out.partial"
  (cd "$here/$directory" && cp "$(GOWORK=off GOFLAGS='' go list -mod=readonly -m -f '{{.Dir}}' "$module")/$path" "$partial" && chmod u+w "$partial") \
    >"$log" 2>&1 9>&- || failed "$name" "$log"
  mv "$partial" "$out"
}

# Unoptimised: it is asked a few hundred questions.
build_crate() {
  local name=$1 version=$2 features=$3 takes=$4 out=${links[$1]} log="$cache/log/$1.log" start=$SECONDS
  [ -x "$out" ] && return
  say "building $name $version (once, about $takes) ..."
  partial="$(crate_directory "$name" "$version").partial"
  (cd "$here" && CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_STRIP=true \
    cargo install --quiet --locked --debug "$name" --version "=$version" --features "$features" \
    --root "$partial" --target-dir "$partial/target") >"$log" 2>&1 9>&- || failed "$name" "$log"
  rm -rf "$partial/target" "${out%/bin/*}"
  mv "$partial" "${out%/bin/*}"
  say "built $name in $((SECONDS - start)) s"
}

build_environment() {
  local name=$1 directory=${links[python-$1]} log="$cache/log/python-$1.log" start=$SECONDS
  [ -e "$directory/.complete" ] && return
  say "installing the Python environment '$name' (once, about 30 s) ..."
  # Environments cannot be renamed (their scripts hold the path), hence the mark at the end.
  rm -rf "$directory"
  { python3 -m venv "$directory" &&
    "$directory/bin/python" -m pip install --quiet --no-input --disable-pip-version-check -r "$(environment_requirements "$name")"; } \
    >"$log" 2>&1 9>&- || failed "the Python environment '$name'" "$log"
  touch "$directory/.complete"
  say "installed the Python environment '$name' in $((SECONDS - start)) s"
}

build_package() {
  local name=$1 directory=${links[npm-$1]:-} log="$cache/log/npm-$1.log" start=$SECONDS
  if [ -z "$directory" ]; then
    say "Node.js and npm are not both there: the npm package '$name' is left out, and the test that needs it is skipped."
    return
  fi
  [ -d "$directory" ] && return
  say "installing the npm package '$name' (once, about 10 s) ..."
  partial="$directory.partial"
  rm -rf "$partial"
  mkdir -p "$partial"
  { cp "$here/npm/$name/package.json" "$here/npm/$name/package-lock.json" "$partial" &&
    (cd "$partial" && npm ci --ignore-scripts --no-audit --no-fund); } >"$log" 2>&1 9>&- || failed "the npm package '$name'" "$log"
  mv "$partial" "$directory"
  say "installed the npm package '$name' in $((SECONDS - start)) s"
}

# The directory of links, named by where they point, so that it never changes under a running test.
link_directory() {
  echo "$cache/bin-$(for name in "${!links[@]}"; do echo "$name ${links[$name]}"; done | sort | short_hash)"
}

link_all() {
  local directory name
  directory=$(link_directory)
  [ -d "$directory" ] && return
  partial="$directory.partial"
  rm -rf "$partial"
  mkdir -p "$partial"
  for name in "${!links[@]}"; do ln -s "${links[$name]}" "$partial/$name"; done
  mv "$partial" "$directory"
}

# Gives what is in use a new date.
mark_used() {
  local path
  for path in "${links[@]}" "$(link_directory)/"; do
    path=${path#"$cache/"}
    [ "${path#/}" != "$path" ] || touch -c "$cache/${path%%/*}"
  done
}

# Python decides the name of its environment, so it must be there first.
"$here/prerequisites.sh" python || { "$here/prerequisites.sh" go; exit 1; }
if ! plan || [ ! -d "$(link_directory)" ]; then
  "$here/prerequisites.sh" go disk
  mkdir -p "$cache/log"
  exec 9>"$cache/lock"
  flock -n 9 || { say "waiting for another run that builds the tools ..."; flock 9; }
  partial=
  trap '[ -z "$partial" ] || rm -rf "$partial"' EXIT
  for line in "${tools[@]}"; do
    read -r name module package takes <<<"$line"
    build_tool "$name" "$module" "$package" "$takes"
  done
  for line in "${files[@]}"; do
    read -r name directory module path <<<"$line"
    copy_file "$name" "$directory" "$module" "$path"
  done
  for line in "${crates[@]}"; do
    read -r name module package takes <<<"$line"
    build_crate "$name" "$module" "$package" "$takes"
  done
  for name in "${environments[@]}"; do build_environment "$name"; done
  for name in "${packages[@]}"; do build_package "$name"; done
  link_all
  mark_used
  # What nobody has asked for in a month belongs to versions of the past.
  find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +30 ! -name log -exec rm -rf {} +
fi
mark_used
link_directory
