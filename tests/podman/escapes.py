"""Escapes from a container, each a command that must fail in it. See ``prison.py``."""

from __future__ import annotations

from typing import NamedTuple

from limits import HANG_SECONDS

#: This machine's own addresses: one of the internet, one of a private network.
HERE = ("1.2.3.1/24", "10.50.0.1/24", "2a00:1::1/64")
#: Where another installation opens its containers' ports.
PUBLIC = "10.50.0.1"
#: Its neighbour's, which is the way to all others.
OUTSIDE = ("1.2.3.4/24", "2a00:1::4/64")
#: Where clouds give a machine its secrets, and private networks.
METADATA = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254")
PRIVATE = (
    "10.1.2.3",
    "172.16.5.5",
    "192.168.7.7",
    "100.64.9.9",
    "192.0.0.192",
    "198.18.0.9",
    "fd12:3456::1",
    "64:ff9b::a01:203",
)
RESOLVER = "10.255.0.53"
INTERNET = "8.9.10.11"
INTERNET_6 = "2600:9::11"
OUTSIDE_ADDRESSES = tuple(
    f"{address}/{128 if ':' in address else 32}"
    for address in (*METADATA, *PRIVATE, RESOLVER, INTERNET, INTERNET_6)
)


class Escape(NamedTuple):
    name: str
    #: For a shell in the container; @WORDS@ are filled in. It ends with 0 if one gets out.
    command: str


def page(address: str, port: int = 80, seconds: float = 1) -> str:
    host = f"[{address}]" if ":" in address or "@LINK@" in address else address
    return f"curl -sS -g --connect-timeout {seconds:g} -m {5 * seconds:g} http://{host}:{port}/"


def syscall(*words: object) -> str:
    """For an x86-64. It must be refused as such (EPERM, ENOSYS), not for what it is given."""
    call = ", ".join(map(str, words))
    return f"perl -e 'exit(syscall({call}) == -1 && ($! == 1 || $! == 38) ? 1 : 0)'"


def processes(count: int) -> str:
    """Ends with 0 if so many can be at once; none of them is left."""
    return (
        f"perl -e 'for (1..{count}) {{ $p = fork(); last if !defined $p; "
        "if (!$p) { sleep 60; exit } push @all, $p } "
        f"kill 9, @all; 1 while wait() > 0; exit(@all == {count} ? 0 : 1)'"
    )


def writes(path: str, text: str = "1") -> str:
    return f"echo {text} > {path}"


NETWORK = [
    *(Escape(f"metadata at {address}", page(address)) for address in METADATA),
    *(Escape(f"a private network: {address}", page(address)) for address in PRIVATE),
    *(Escape(f"this machine at {address}", page(address.partition("/")[0])) for address in HERE),
    Escape("this machine's neighbour, at an address of the internet's", page("1.2.3.4")),
    Escape("this machine at the container's gateway", page("@GATEWAY@")),
    Escape("this machine by IPv6, on its own link", page("@LINK@%25eth0")),
    Escape("this machine's other ports there", page("@GATEWAY@", 53)),
    Escape("the resolver's other ports", page(RESOLVER)),
    Escape("another tenant's container", page("@OTHER@")),
    Escape("its SSH", page("@OTHER@", 22)),
    Escape("its ingress on this machine", page("@OTHERS@", 8099)),
    Escape("another tenant's ingress on an address of this machine", page(PUBLIC, 8098)),
    Escape("raw packets", syscall(41, 17, 3, 0)),  # socket(AF_PACKET, SOCK_RAW)
    Escape("what runs this machine", syscall(41, 40, 1, 0)),  # socket(AF_VSOCK, SOCK_STREAM)
    Escape("loopback by a route", writes("/proc/sys/net/ipv4/conf/all/route_localnet")),
    Escape("forwarding", writes("/proc/sys/net/ipv4/ip_forward")),
]
ROOT = [
    Escape("root of this machine", "test $(awk '{print $2}' /proc/self/uid_map) = 0"),
    Escape("all users of this machine", "test $(awk '{print $3}' /proc/self/uid_map) -gt 65536"),
    Escape("more users", writes("/proc/self/uid_map", "0 0 1")),
    Escape("the kernel's settings", writes("/proc/sys/kernel/core_pattern", "x")),
    Escape("memory of this machine's caches", writes("/proc/sys/vm/drop_caches")),
    Escape("magic keys", writes("/proc/sysrq-trigger", "h")),
    Escape("a writable /proc/sys", "mount -o remount,rw /proc/sys"),
    Escape("a writable /sys", "mount -o remount,rw /sys"),
    Escape("a mount", "mount -t tmpfs none /mnt"),
    Escape("a bind mount", "mount --bind /root /mnt"),
    Escape("another proc", "mount -t proc none /mnt"),
    Escape("namespaces", "unshare --mount true"),
    Escape("a user namespace, and all rights in it", syscall(272, 0x10000000)),
    Escape("one for a new process", syscall(56, 0x10000011, 0, 0, 0, 0)),
    Escape("one for a new process, said in memory", "perl -e 'syscall(435, 0, 0); exit($! == 38)'"),
    Escape("the namespaces of another process", "nsenter --net=/proc/1/ns/net true"),
    Escape("the rights of a process of this machine", "test -e /proc/@PID@"),
    Escape("the clock", "date -s now"),
    Escape("the name of the machine", "hostname other"),
    Escape("the kernel's log", "dmesg"),
    Escape("a module of the kernel", syscall(175, 0, 0, 0)),
    Escape("a program in the kernel", syscall(321, 0, 0, 0)),
    Escape("a restart of the machine", syscall(169, 0xFEE1DEAD, 672274793, 0x89ABCDEF, 0)),
    Escape(
        "rights by a file",
        'touch /tmp/t && perl -e \'($f, $n) = ("/tmp/t", "security.capability"); '
        '$v = pack("V5", 0x02000001, 1 << 21, 0, 0, 0); '
        "exit(syscall(188, $f, $n, $v, 20, 0) == -1 && $! == 1 ? 1 : 0)'",
    ),
    *(
        Escape(f"this machine's {path}", f"ls -d {path}")
        for path in (
            "/run/podman",
            "/run/docker.sock",
            "/run/*.sock",
            "/var/lib/containers",
            "/run/containers",
            "@STATE@",
        )
    ),
    Escape("more SSH keys for oneself, past the API", writes("/etc/gfs/keys/authorized_keys")),
]
DEVICES = [
    Escape("a disk", "mknod /tmp/disk b 8 0"),
    Escape("a character device", "mknod /tmp/memory c 1 1"),
    Escape("memory", "head -c 1 /dev/mem"),
    Escape("the disks that are there", "ls /dev | grep -E '^(loop|sd|vd|xvd|nvme|dm|fuse|kvm)'"),
    Escape("a tunnel", "ls /dev/net/tun"),
]
LIMITS = [
    Escape(
        "more disk than granted: root", "head -c 1100M /dev/zero > /fill; r=$?; rm /fill; exit $r"
    ),
    Escape(
        "more disk than granted: a mount path",
        "head -c 1100M /dev/zero > /root/fill; r=$?; rm /root/fill; exit $r",
    ),
    Escape(
        "more disk than granted: both together",
        "head -c 600M /dev/zero > /fill; head -c 600M /dev/zero > /root/fill; r=$?; "
        "rm /fill /root/fill; exit $r",
    ),
    Escape(
        "more memory than granted: a process",
        "perl -e '$a = chr(1) x (400 << 20); exit(0)'",
    ),
    Escape(
        "more memory than granted: files in it",
        "head -c 300M /dev/zero > /dev/shm/fill; r=$?; rm -f /dev/shm/fill; exit $r",
    ),
    Escape(
        "more memory by a setting",
        "file=/sys/fs/cgroup/memory/memory.limit_in_bytes; "
        "[ -e $file ] || file=/sys/fs/cgroup/memory.max; echo 9999999999 > $file",
    ),
    Escape(
        "another control group",
        "group=/sys/fs/cgroup/pids; [ -d $group ] || group=/sys/fs/cgroup; mkdir $group/more",
    ),
    Escape(
        "more processes than granted",
        processes(1100),
    ),
    *(
        Escape(
            f"more disk than granted: {path} is no part of it",
            f'perl -e \'exit((stat("{path}"))[0] == (stat("/root"))[0] ? 1 : 0)\'',
        )
        for path in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv")
    ),
    Escape(
        "more PTYs than granted",
        """perl -e 'for (1..128) { open($f[$_], "+<", "/dev/ptmx") or exit(1) } exit(0)'""",
    ),
    Escape(
        "this machine's contexts of AIO",  # io_setup
        "perl -e '$p = pack(\"Q\", 0); exit(syscall(206, 1, $p) == -1 && $! == 38 ? 1 : 0)'",
    ),
    Escape(
        "all that its disk's device can do",
        "! cat /sys/fs/cgroup/blkio/blkio.throttle.write_bps_device /sys/fs/cgroup/io.max "
        "2>/dev/null | grep -q '^7:'",
    ),
    Escape("core dumps on this machine's disk", "ulimit -c 1"),
    Escape("more descriptors than granted", "ulimit -Hn 4097"),
    Escape(
        "more open files than granted",
        'perl -e \'for (1..4097) { open($f[$_], "<", "/dev/null") or exit(1) } exit(0)\'',
    ),
]
#: Takes what the kernel counts for the whole machine, as much as it gets, and keeps it.
FLOOD = (
    """perl -e 'for (1..1000) { open($p[$_], "+<", "/dev/ptmx") or last } """
    """for (1..2500) { last if syscall(253) < 0; $n++ } """
    """fork() and exit; print "$n instances\\n"; close STDOUT; setpgrp; sleep 9999' </dev/null"""
)
#: Datagrams to 20,000 ports of the internet: for this machine a connection each.
MANY_CONNECTIONS = (
    "perl -MSocket -e 'socket(S, PF_INET, SOCK_DGRAM, 0); "
    f'for (10001..30000) {{ send(S, "x", 0, pack_sockaddr_in($_, inet_aton("{INTERNET}"))) }}\''
)
#: What a tenant can do all the same, in the same words.
PERMITTED = [
    Escape("the internet", page(INTERNET, seconds=HANG_SECONDS)),
    Escape("the internet by IPv6", page(INTERNET_6, seconds=HANG_SECONDS)),
    Escape("names", page(RESOLVER, 53, HANG_SECONDS)),
    Escape("its own users", "touch /tmp/u && chown 33:33 /tmp/u && chmod 4755 /tmp/u"),
    Escape("its own name", "getent hosts $(hostname) && echo 127.0.0.9 other >> /etc/hosts"),
    Escape("another of its users", "su -s /bin/sh www-data -c 'test $(id -u) = 33'"),
    Escape("directories beside the mount paths", "mkdir /new && rmdir /new"),
    Escape("much of its disk", "head -c 700M /dev/zero > /fill && rm /fill"),
    Escape("much of its memory", "perl -e '$a = chr(1) x (90 << 20); exit(0)'"),
    Escape(
        "many processes",
        processes(300),
    ),
]
ESCAPES = [*NETWORK, *ROOT, *DEVICES, *LIMITS]
