#!/bin/sh
# Installs the programs that the tests run: servers and clients to send real traffic through the
# gateway, and what it takes to set up the network around them. Does nothing where all are there.
#
#	test-deps.sh [package...]    only these of them
set -eu

# System programs are not on every user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Debian package, and every command of it that the tests run, or a file (pattern) by which one sees that it is there. A test in tools/house
# compares the commands with what the tests run.
wanted='
bind9-dnsutils       dig
ca-certificates      /etc/ssl/certs/ca-certificates.crt
chromium             chromium
curl                 curl
dnsdist              dnsdist
dnsmasq-base         dnsmasq
dnsperf              dnsperf
fonts-dejavu-core    /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf
gcc                  gcc
haproxy              haproxy
iperf3               iperf3
iproute2             ip
libc6-dev            /usr/include/stdlib.h
libfaketime          /usr/lib/*/faketime/libfaketime.so.1
libnginx-mod-stream  /usr/lib/nginx/modules/ngx_stream_module.so
make                 make
mount                mount
netcat-openbsd       nc
nftables             nft
nginx                nginx
nodejs               node
npm                  npm
openssh-client       sftp ssh ssh-keygen
openssh-server       sshd
openssl              openssl
openvpn              openvpn
postgresql           /usr/lib/postgresql/*/bin/initdb /usr/lib/postgresql/*/bin/postgres
postgresql-client    pg_isready psql /usr/lib/postgresql/*/bin/psql
postgresql-contrib   pgbench /usr/lib/postgresql/*/bin/pgbench
prometheus           prometheus promtool
python3              python3
redis-server         redis-server
redis-tools          redis-benchmark redis-cli
snmp                 snmpbulkwalk snmpget
snmpd                snmpd
strace               strace
tmux                 tmux
unbound              unbound
util-linux           chrt
wrk                  wrk
'

only=$*

chosen() {
	case " $only " in
	'  ' | *" $1 "*) ;;
	*) false ;;
	esac
}

# there COMMAND|FILE...: whether all of them are there. A pattern without a file is a file that is not there.
there() {
	for probe in "$@"; do
		case $probe in
		/*) [ -e "$probe" ] ;;
		*) command -v "$probe" >/dev/null ;;
		esac || return 1
	done
}

# The packages of $wanted that are not there, on one line.
missing() {
	echo "$wanted" | while read -r package probes; do
		# shellcheck disable=SC2086 # a list, and patterns
		[ -z "$package" ] || ! chosen "$package" || there $probes || printf '%s ' "$package"
	done
}

give_up() {
	echo "test-deps: these Debian packages are missing: $packages" >&2
	echo "test-deps: $1" >&2
	exit 1
}

packages=$(missing)
[ -n "$packages" ] || exit 0

command -v apt-get >/dev/null ||
	give_up 'there is no apt-get here; install the programs of the same names by hand'
as_root=
if [ "$(id -u)" != 0 ]; then
	sudo -n true 2>/dev/null ||
		give_up "not root, and sudo wants a password; run: sudo apt-get install $packages"
	as_root=sudo
fi

echo "test-deps: installing $packages"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq || give_up 'apt-get update failed'
# shellcheck disable=SC2086 # a list
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null ||
	give_up 'apt-get install failed'
packages=$(missing)
[ -z "$packages" ] || give_up 'apt-get installed them, and yet they are not where they are expected'
