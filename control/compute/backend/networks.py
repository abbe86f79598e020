"""The addresses of the internet, which are those that a container reaches unless an operator
opens more (``open_networks``). Each backend has its own way to enforce that."""

from __future__ import annotations

import ipaddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Not the internet: this host, private, shared (with the metadata service of one cloud),
#: link-local (with those of most), for protocols, documentation and benchmarks, multicast,
#: reserved; and the metadata service of another, which has an address of the internet.
REFUSED_4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
#: In IPv6 this is the internet, except for IPv4 in other forms (Teredo, 6to4) and addresses
#: for documentation. It excludes unique local addresses (with the metadata service of a
#: third cloud), link-local ones and those of NAT64.
INTERNET_6 = "2000::/3"
REFUSED_6 = ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
