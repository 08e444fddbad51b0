#!/usr/bin/env bash
# Everything that is checked before a change goes in: format, lints, documentation, tests, and the model checker.
#
#   tests/run.sh
#
# It needs Rust (rustup's stable with rustfmt and clippy) and, on a Debian, installs what is missing of its packages. What a
# machine cannot do (no /dev/kvm, no huge pages) is skipped, and every skip is listed at the end with its reason.
#
#   SLAT_REFUSE_SKIPS=1   a device that is there has to work, and what can be fetched has to be there
#   SLAT_LONG=1           a minute for tests that are the better the longer they run, not five seconds
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
die() { printf '\nrun.sh: %s\n' "$*" >&2; exit 1; }

# Packages by the tool that is missed. gcc links, iproute2 is for configs/with-tap.sh; the rest for configs/get-debian.sh.
install_missing() {
  local packages=()
  [[ -e /usr/lib/x86_64-linux-gnu/libc.a ]] && command -v cc >/dev/null || packages+=(gcc libc6-dev)
  command -v dpkg-deb >/dev/null || packages+=(dpkg)
  command -v cpio >/dev/null || packages+=(cpio)
  PATH=$PATH:/usr/sbin:/sbin command -v mke2fs >/dev/null || packages+=(e2fsprogs)
  command -v ip >/dev/null || packages+=(iproute2)
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || packages+=(ca-certificates)
  ((${#packages[@]})) || return 0
  if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
    echo "not installed, and only root can with apt-get: ${packages[*]}"
    return 0
  fi
  echo "installing ${packages[*]}"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${packages[@]}" >/dev/null
}

# Huge pages for the tests that lie on them, given back at the end.
readonly HUGE=/sys/kernel/mm/hugepages/hugepages-2048kB
huge_before=
reserve_huge_pages() {
  [[ -r $HUGE/free_hugepages && $(<"$HUGE/free_hugepages") == 0 ]] || return 0
  local before
  before=$(<"$HUGE/nr_hugepages")
  if [[ $(id -u) != 0 || ! -w $HUGE/nr_hugepages ]] || ! echo $((before + 8)) >"$HUGE/nr_hugepages"; then
    echo "no huge page is free, and this user cannot reserve any: vm.nr_hugepages stays $before"
    return 0
  fi
  huge_before=$before
  echo "RESERVED huge pages for the tests: vm.nr_hugepages was $before and is $(<"$HUGE/nr_hugepages") until the end"
}

skips=$(mktemp)
cleanup() {
  if [[ -n $huge_before ]]; then
    echo "$huge_before" >"$HUGE/nr_hugepages"
    echo "gave the huge pages back: vm.nr_hugepages is $(<"$HUGE/nr_hugepages")"
  fi
  rm -f "$skips"
}
trap cleanup EXIT

# Prints what was skipped; fails if that is for want of a device that is here.
list_skips() {
  sort -u "$skips"
  [[ -s $skips ]] || echo "nothing"
  local device
  for device in /dev/kvm /dev/userfaultfd; do
    if [[ -e $device ]] && grep -q "^SKIPPED: .*$device" "$skips"; then
      die "a test was skipped for want of $device, which is here"
    fi
  done
}

say "what the tests need"
install_missing
configs/get-debian.sh || echo "configs/get-debian.sh failed: the tests of Debian's kernel are skipped or fail"
reserve_huge_pages

say "format"
cargo fmt --all --check
cargo fmt --manifest-path vmm/guests/Cargo.toml --check

say "lints"
cargo clippy --workspace --all-targets -- -D warnings
# Its own folder: its profile panics otherwise, so it shares no build with the workspace.
guests=(--manifest-path vmm/guests/Cargo.toml --locked --target-dir target/guests)
cargo clippy "${guests[@]}" --release -- -D warnings

say "documentation"
# What is private is documented too, so a link to it leads somewhere.
RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items

say "model checker"
cargo loom

say "tests of the built-in guests' library"
cargo test "${guests[@]}" --lib

say "tests"
SLAT_SKIP_LOG=$skips cargo test --workspace --no-fail-fast

say "skipped"
list_skips
say "all passed"
