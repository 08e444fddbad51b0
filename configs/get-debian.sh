#!/usr/bin/env bash
# Fetches what configs/debian.toml boots: Debian's stock cloud kernel, an initramfs with its virtio drivers, and a small root
# file system with a static busybox and the program of tests/guest in it.
#
#   configs/get-debian.sh            fetch what is missing, and make what is missing or older than what it is made of
#   configs/get-debian.sh --force    fetch and make everything again
#
# It needs a Debian with apt and dpkg-deb (both are part of every Debian), and Rust with gcc and libc6-dev, which build the
# program. It installs nothing and writes only into configs/debian/, which git ignores, and into Cargo's target folder. It runs
# `apt-get update` (which needs root) only when apt does not know the packages yet. A second run finds everything in place.
#
# configs/debian/root.ext4 is a machine's disk: what the guest writes stays there. Remove it and run this for a new one.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(dirname "$here")
out=$here/debian
kernel=$out/vmlinuz
initramfs=$out/initramfs.cpio
disk=$out/root.ext4
outside=$out/guest-tool
packages=$out/packages

say() { printf '%s\n' "get-debian: $*"; }
die() { printf '%s\n' "get-debian: $*" >&2; exit 1; }

force=no
case "${1-}" in
  "") ;;
  --force) force=yes ;;
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) die "unknown argument '$1': the only one is --force" ;;
esac

# What all of it follows from, but for the packages.
stamp=$(cd "$tree" && find configs/get-debian.sh tests/guest -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
if [[ $force == no && -s $kernel && -s $initramfs && -s $disk && -x $outside && $stamp == "$(cat "$out/stamp" 2>/dev/null)" ]]; then
  say "$kernel, $initramfs and $disk are here already (--force fetches them again)"
  exit 0
fi
for tool in apt-get apt-cache dpkg-deb; do
  command -v "$tool" >/dev/null || die "$tool is not here: run this on a Debian, or put a kernel, an initramfs and a disk into $out yourself"
done
command -v cargo >/dev/null || die "cargo is not here: the README says what building needs"

# Work on the side and move into place at the end: an interrupted run leaves nothing that looks finished.
mkdir -p "$out"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
[[ $force == no ]] || rm -rf "$packages"
mkdir -p "$packages"

# linux-image-cloud-amd64 is an empty package whose dependency names the current kernel.
newest_kernel() {
  apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}

# fetch PACKAGE: downloads it, unless it is here, and unpacks it to $work/PACKAGE. Nothing is installed, no maintainer script runs.
fetch() {
  if ! compgen -G "$packages/$1_*.deb" >/dev/null; then
    say "    downloading $1"
    mkdir -p "$work/download"
    # As root, apt would otherwise drop to a user who may not write here, and warn about it.
    (cd "$work/download" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$1") || return
    mv "$work/download/$1"_*.deb "$packages/"
  fi
  dpkg-deb -x "$packages/$1"_*.deb "$work/$1"
}

say "1/5 asking apt for the current cloud kernel"
# One that was fetched before stays until --force.
package=$(compgen -G "$packages/linux-image-*.deb" | sed 's|.*/||;s|_.*||' | head -n 1 || true)
if [[ -z $package ]]; then
  package=$(newest_kernel)
  if [[ -z $package ]] || ! apt-cache show busybox-static >/dev/null 2>&1; then
    say "    apt does not know it: updating its lists"
    apt-get -qq update || die "apt-get update failed: run it as root, then start this again"
    package=$(newest_kernel)
  fi
fi
[[ -n $package ]] || die "apt knows no linux-image-cloud-amd64: is a Debian archive for amd64 among its sources?"

say "2/5 the kernel"
if ! fetch "$package"; then
  # Old lists name files that the archive has dropped since.
  say "    apt's lists are out of date: updating them"
  apt-get -qq update || die "apt-get update failed: run it as root, then start this again"
  package=$(newest_kernel)
  fetch "$package"
fi
images=("$work/$package"/boot/vmlinuz-*)
[[ -s ${images[0]} ]] || die "$package has no /boot/vmlinuz-*"
modules=("$work/$package"/lib/modules/*)
[[ -d ${modules[0]} ]] || modules=("$work/$package"/usr/lib/modules/*)
[[ -d ${modules[0]} ]] || die "$package has no modules"

say "3/5 busybox, and the program of tests/guest"
fetch busybox-static
busybox=$work/busybox-static/bin/busybox
[[ -x $busybox ]] || busybox=$work/busybox-static/usr/bin/busybox
[[ -x $busybox ]] || die "busybox-static has no busybox"
# Nothing that has to be done before main: no libraries, and no addresses to be filled in, each page of which would be a fault.
target=${CARGO_TARGET_DIR:-$tree/target}
RUSTFLAGS="-Ctarget-feature=+crt-static -Crelocation-model=static -Cpanic=abort -Cstrip=symbols" cargo build --quiet --release \
  --manifest-path "$tree/Cargo.toml" --target-dir "$target" --target x86_64-unknown-linux-gnu -p guest_tool
program=$target/x86_64-unknown-linux-gnu/release/guest-tool
[[ -x $program ]] || die "cargo made no $program"

# The runs by their names.
link_runs() {
  local run
  for run in filetree transfer compress memory; do ln -s "$1" "$2/$run"; done
}

# What a driver needs comes before it. The number is that of the virtio device that it is for: only those of devices that are
# there are loaded, because the kernel checks the signature of each in ring 0.
drivers() {
  cat <<'DRIVERS'
- virtio_ring
- virtio
- virtio_mmio
2 virtio_blk
1 failover
1 net_failover
1 virtio_net
5 virtio_balloon
4 virtio-rng
3 virtio_console
DRIVERS
}

say "4/5 the initramfs"
root=$work/initramfs
mkdir -p "$root"/{bin,dev,lib/modules,proc,root,sys,tmp}
install -m 755 "$program" "$root/init"
install -m 755 "$busybox" "$root/bin/busybox"
link_runs ../init "$root/bin"
listed=
while read -r device name; do
  file=$(find "${modules[0]}/kernel" -name "$name.ko" -print -quit)
  if [[ -z $file ]]; then
    # Newer kernels may have it built in.
    grep -q "/$name\.ko$" "${modules[0]}/modules.builtin" || die "$package has no driver $name.ko, or packs it"
    continue
  fi
  for needed in $(grep -aoz 'depends=[^[:cntrl:]]*' "$file" | tr -d '\0' | sed 's/.*depends=//;s/,/ /g'); do
    [[ " $listed " == *" $needed "* ]] || die "$name.ko needs $needed: put that before it"
  done
  listed+=" $name"
  install -m 644 "$file" "$root/lib/modules/$name.ko"
  printf '%s %s\n' "$device" "$name.ko" >>"$root/lib/modules/virtio.list"
done < <(drivers)

# Debian's own cpio where it is installed, else the one inside the busybox that was just fetched.
if command -v cpio >/dev/null; then pack=(cpio --quiet -o -H newc -R 0:0); else pack=("$busybox" cpio -o -H newc -R 0:0); fi
# Not compressed: the guest kernel would unpack it in ring 0, which is slow where ring 0 is emulated.
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . | LC_ALL=C sort | "${pack[@]}" 2>/dev/null) >"$work/initramfs.cpio"
[[ $(head -c 6 "$work/initramfs.cpio") == 070701 ]] || die "cpio wrote no newc archive"

say "5/5 the root file system"
root=$work/root
mkdir -p "$root"/{bin,dev,etc,proc,root,sbin,sys,tmp}
chmod 1777 "$root/tmp"
install -m 755 "$busybox" "$root/bin/busybox"
install -m 755 "$program" "$root/bin/guest-tool"
ln -s /bin/guest-tool "$root/sbin/init"
ln -s busybox "$root/bin/sh"
link_runs guest-tool "$root/bin"
echo 'root::0:0:root:/:/bin/sh' >"$root/etc/passwd"
find "$root" -exec touch -h -d @0 {} +

# mke2fs of this machine, else the one out of Debian's package with its libraries, run where it was unpacked.
make_ext4=()
fetch_mke2fs() {
  local library libraries=
  fetch e2fsprogs || return
  for library in $(apt-cache depends e2fsprogs | sed -n 's/^ *\(Pre\)\{0,1\}Depends: \(lib[^ ]*\)$/\2/p'); do
    [[ $library == libc6 ]] || fetch "$library" || return
  done
  libraries=$(find "$work" -name 'lib*.so.*' -printf '%h\n' | sort -u | tr '\n' ':')
  make_ext4=(env "LD_LIBRARY_PATH=$libraries" "$(find "$work/e2fsprogs" -name mke2fs -type f -print -quit)")
}
if tool=$(PATH=$PATH:/usr/sbin:/sbin command -v mke2fs); then make_ext4=("$tool"); else fetch_mke2fs || die "e2fsprogs cannot be fetched"; fi
# The files are root's in the guest, whoever makes them.
as_root=()
if [[ $(id -u) != 0 ]] && unshare --map-root-user true 2>/dev/null; then as_root=(unshare --map-root-user); fi

# Features that cost the guest's kernel work are left out: sums of metadata, 64-bit block numbers, tables that are filled when
# the file system is first used. One group of blocks, whose tables are short. The journal is there, and as small as it can be.
features=none,has_journal,ext_attr,extent,filetype,sparse_super,large_file,extra_isize
uuid=736c6174-0000-4000-8000-000000000001
: >"$work/mke2fs.conf"
MKE2FS_CONFIG=$work/mke2fs.conf "${as_root[@]}" "${make_ext4[@]}" -q -F -t ext4 -O "$features" -b 4096 -I 256 -N 4096 -m 0 -J size=4 \
  -L slat-root -U "$uuid" -E "root_owner=0:0,hash_seed=$uuid,lazy_itable_init=0,lazy_journal_init=0" \
  -d "$root" "$work/root.ext4" 64M >"$work/mke2fs.log" 2>&1 || die "mke2fs failed: $(cat "$work/mke2fs.log")"

rm -f "$out/stamp"
mv "$work/initramfs.cpio" "$initramfs"
mv "$work/root.ext4" "$disk"
install -m 644 "${images[0]}" "$kernel"
# The same program for this side of the guest.
install -m 755 "$program" "$outside"
printf '%s\n' "$package" >"$out/package"
printf '%s\n' "$stamp" >"$out/stamp"
say "done: $package"
say "      $kernel ($(stat -c %s "$kernel") bytes), $initramfs ($(stat -c %s "$initramfs") bytes)"
say "      $disk ($(stat -c %s "$disk") bytes, $(($(stat -c %b "$disk") * 512)) of them on this disk)"
say "next: slat run $here/debian.toml"
