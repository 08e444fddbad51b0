#!/usr/bin/env bash
# Fetches what configs/debian.toml boots: Debian's stock cloud kernel, and an initramfs with a static busybox in it.
#
#   configs/get-debian.sh            fetch what is missing
#   configs/get-debian.sh --force    fetch everything again
#
# It needs a Debian with apt and dpkg-deb (both are part of every Debian). It installs nothing and writes only into
# configs/debian/, which git ignores. It runs `apt-get update` (which needs root) only when apt does not know the
# packages yet. A second run finds everything in place and downloads nothing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$here/debian
kernel=$out/vmlinuz
initramfs=$out/initramfs.cpio

say() { printf '%s\n' "get-debian: $*"; }
die() { printf '%s\n' "get-debian: $*" >&2; exit 1; }

force=no
case "${1-}" in
  "") ;;
  --force) force=yes ;;
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) die "unknown argument '$1': the only one is --force" ;;
esac

if [[ $force == no && -s $kernel && -s $initramfs ]]; then
  say "$kernel and $initramfs are here already (--force fetches them again)"
  exit 0
fi
for tool in apt-get apt-cache dpkg-deb; do
  command -v "$tool" >/dev/null || die "$tool is not here: run this on a Debian, or put a kernel and an initramfs into $out yourself"
done

# Work on the side and move into place at the end: an interrupted run leaves nothing that looks finished.
mkdir -p "$out"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# linux-image-cloud-amd64 is an empty package whose dependency names the current kernel.
newest_kernel() {
  apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}

# fetch PACKAGE: downloads it and unpacks it to $work/PACKAGE. Nothing is installed, no maintainer script runs.
fetch() {
  say "downloading $1"
  # As root, apt would otherwise drop to a user who may not write here, and warn about it.
  (cd "$work" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$1") || return
  dpkg-deb -x "$work/$1"_*.deb "$work/$1"
}

say "1/4 asking apt for the current cloud kernel"
package=$(newest_kernel)
if [[ -z $package ]] || ! apt-cache show busybox-static >/dev/null 2>&1; then
  say "    apt does not know it: updating its lists"
  apt-get -qq update || die "apt-get update failed: run it as root, then start this again"
  package=$(newest_kernel)
fi
[[ -n $package ]] || die "apt knows no linux-image-cloud-amd64: is a Debian archive for amd64 among its sources?"

say "2/4 the kernel"
if ! fetch "$package"; then
  # Old lists name files that the archive has dropped since.
  say "    apt's lists are out of date: updating them"
  apt-get -qq update || die "apt-get update failed: run it as root, then start this again"
  package=$(newest_kernel)
  fetch "$package"
fi
images=("$work/$package"/boot/vmlinuz-*)
[[ -s ${images[0]} ]] || die "$package has no /boot/vmlinuz-*"

say "3/4 busybox"
fetch busybox-static
busybox=$work/busybox-static/bin/busybox
[[ -x $busybox ]] || busybox=$work/busybox-static/usr/bin/busybox
[[ -x $busybox ]] || die "busybox-static has no busybox"

say "4/4 the initramfs"
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp}
install -m 755 "$busybox" "$root/bin/busybox"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
# The first process. The kernel starts it with no devices and nothing mounted.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ PS1='guest# '
exec </dev/ttyS0 >/dev/ttyS0 2>&1
# What a test waits for on the console.
echo "slat: init is up, kernel $(uname -r), $(sed -n 's/^MemTotal: *//p' /proc/meminfo) of memory"
# setsid and cttyhack give the shell a controlling terminal, so that Ctrl-C reaches what it runs.
setsid cttyhack sh
# With reboot=k panic=-1 this resets the machine, which ends the monitor.
reboot -f
INIT
chmod 755 "$root/init"

# Debian's own cpio where it is installed, else the one inside the busybox that was just fetched.
if command -v cpio >/dev/null; then pack=(cpio --quiet -o -H newc -R 0:0); else pack=("$busybox" cpio -o -H newc -R 0:0); fi
# Not compressed: the guest kernel would unpack it in ring 0, which is slow where ring 0 is emulated.
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . | LC_ALL=C sort | "${pack[@]}" 2>/dev/null) >"$work/initramfs.cpio"
[[ $(head -c 6 "$work/initramfs.cpio") == 070701 ]] || die "cpio wrote no newc archive"

mv "$work/initramfs.cpio" "$initramfs"
install -m 644 "${images[0]}" "$kernel"
printf '%s\n' "$package" >"$out/package"
say "done: $package"
say "      $kernel ($(stat -c %s "$kernel") bytes), $initramfs ($(stat -c %s "$initramfs") bytes)"
say "next: slat run $here/debian.toml"
