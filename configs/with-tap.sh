#!/usr/bin/env bash
# Runs a command in a network of its own, with TAP interfaces for guests. The host's network is not touched, and nothing is left
# when the command and what it started have ended.
#
#   configs/with-tap.sh [--taps N] [--queues] COMMAND...
#
# The interfaces are tap0, tap1... (one, unless N says otherwise). The host is 10.0.0.1 on the one, or on the bridge that joins
# several. With --queues, the interfaces are for guests with more than one pair of queues (`queues = 2`), and for no others.
#
# It needs ip and unshare, of Debian's packages iproute2 and util-linux, and either root or a kernel that lets everybody make
# user namespaces. Who runs the command must be able to open /dev/net/tun.
set -euo pipefail

die() { printf '%s\n' "with-tap: $*" >&2; exit 2; }

taps=1
queues=()
while (($#)); do
  case $1 in
    --taps) taps=${2-}; shift; (($#)) || die "--taps: expected a number"; shift ;;
    --queues) queues=(multi_queue); shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) die "unknown argument '$1': there are --taps N and --queues" ;;
    *) break ;;
  esac
done
(($#)) || die "expected a command"
[[ $taps =~ ^[1-9][0-9]?$ ]] || die "--taps $taps: expected a number from 1 to 99"
for tool in ip unshare; do
  command -v "$tool" >/dev/null || die "$tool is not here: it is in Debian's package $([[ $tool == ip ]] && echo iproute2 || echo util-linux)"
done

# Runs in the new network: makes what the arguments before `--` say, and becomes the command.
inside() {
  set -euo pipefail
  local taps=$1 uplink=tap0 tap
  shift
  local kind=()
  while [[ $1 != -- ]]; do kind+=("$1"); shift; done
  shift
  ip link set lo up
  if ((taps > 1)); then
    uplink=uplink
    ip link add "$uplink" type bridge
  fi
  for ((tap = 0; tap < taps; tap++)); do
    ip tuntap add "tap$tap" mode tap "${kind[@]}"
    if ((taps > 1)); then ip link set "tap$tap" master "$uplink"; fi
    ip link set "tap$tap" up
  done
  ip address add 10.0.0.1/24 dev "$uplink"
  ip link set "$uplink" up
  exec "$@"
}

namespaces=(--net)
[[ $(id -u) == 0 ]] || namespaces+=(--user --map-root-user)
export -f inside
exec unshare "${namespaces[@]}" bash -c 'inside "$@"' inside "$taps" "${queues[@]}" -- "$@"
