"""Aggregate throughput beside the limit of the network's links: figure 3 of the paper.

    python -m bench.links                 # 16 chunkservers, 1 to 16 clients
    python -m bench.links --quick         # 6 chunkservers, 1 and 4 clients

As root, with iproute2. A master, chunkservers and clients, each with a network namespace
and a link of 100 Mbit/s full duplex (``tc tbf`` on both ends of a veth pair); the servers
on one switch and the clients on another (two bridges), with 1 Gbit/s between them. Whatever
other machines would do the kernel does here, and the links are slow enough for two cores.

A link carries 12.5 MB/s in each direction; Ethernet, IP and TCP headers take 4.4 % of it,
so its limit in payload is 11.96 MB/s. For N clients and S chunkservers (the paper, 6.1):

* *read*, of random regions of 4 MB, one after the other: min(N, S) links, at most the
  link between the switches; readers that meet at one server share its link while others are
  idle. *read4*: each client reads four of them at once;
* *write* of 3 replicas, each client to a file of its own: N links, at most S / 3, since
  every byte enters three chunkservers;
* *record append* to one file: one link, whatever N is: that of the last chunk's primary.

Bytes count while everybody is at work, after a warm-up that fills all windows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from bench import cluster
from bench.circumstances import OUT, circumstances
from bench.links import figure
from bench.links.machines import Machines, running
from bench.links.network import TRUNK_LINKS

MBIT = 1_000_000 // 8
REPLICATION = 3
WARM_SECONDS = 4.0
LOADS = ("write", "read", "read4", "append")
#: Below this share of the limit something else than the links is it: the cores, perhaps, if
#: less of them was idle.
GOAL, IDLE_MIN = 0.95, 0.05


def limit(load: str, clients: int, servers: int) -> float:
    """In links."""
    bottleneck = {"write": servers / REPLICATION, "append": 1}.get(load, servers)
    return min(clients, TRUNK_LINKS, bottleneck)


def cores() -> tuple[float, float]:
    """Seconds that the cores spent so far, and those of them without work."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def measure(machines: Machines, load: str, clients: int, seconds: float) -> dict[str, Any]:
    network = machines.network
    begin = time.monotonic() + WARM_SECONDS
    machines.order(load, clients, begin, begin + seconds)
    time.sleep(begin - time.monotonic())
    before, cores_before, ours_before = network.carried(), cores(), machines.scheduled()
    time.sleep(begin + seconds - time.monotonic())
    after, cores_after, ours_after = network.carried(), cores(), machines.scheduled()
    rate = machines.results(clients) / seconds
    most = limit(load, clients, len(machines.servers)) * network.payload
    #: Of each chunkserver, in the direction in which more goes.
    side, link = int(not load.startswith("read")), network.payload * seconds
    shares = [(after[name][side] - before[name][side]) / link for name in machines.servers]
    idle = (cores_after[1] - cores_before[1]) / (cores_after[0] - cores_before[0])
    ran, waited = (now - then for now, then in zip(ours_after, ours_before, strict=True))
    bound = "links" if rate >= GOAL * most else "perhaps cores" if idle < IDLE_MIN else "neither"
    return {
        "load": load,
        "clients": clients,
        "mb_s": round(rate / 1e6, 2),
        "limit_mb_s": round(most / 1e6, 2),
        "of_limit": round(rate / most, 3),
        "servers_links_mean": round(sum(shares) / len(shares), 3),
        "servers_links_max": round(max(shares), 3),
        "cores_idle": round(idle, 3),
        "cores_used": round(ran / seconds, 2),
        "cores_waited_for": round(waited / seconds, 2),
        "bound_by": bound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.links", description=__doc__)
    parser.add_argument("--chunkservers", type=int, default=16)
    parser.add_argument("--mbit", type=int, default=100, help="of each link, in a second")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="a minute, on a smaller network")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    options = parser.parse_args()
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        sys.exit("bench.links makes network namespaces: run it as root, with iproute2 installed")
    if {"read", "read4"} & {*options.loads} and "write" not in options.loads:
        parser.error("what is read has to be written in the same run: --loads write read")
    if options.quick:
        options.chunkservers, options.clients, options.seconds = 6, [1, 4], 5.0
    started, load_before = time.time(), os.getloadavg()[0]
    rows = []
    with (
        cluster.interrupted_cleanly(),
        running(
            options.mbit * MBIT, options.chunkservers, max(options.clients), options.dir
        ) as machines,
    ):
        for load in sorted(set(options.loads), key=LOADS.index):
            for clients in options.clients:
                row = measure(machines, load, clients, options.seconds)
                print(f"{load}, {clients} clients: {row['of_limit']:.0%} of the limit", flush=True)
                rows.append(row)
    result = {
        **circumstances(started, load_before),
        "chunkservers": options.chunkservers,
        "mbit": options.mbit,
        "rows": rows,
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "links.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    figure.draw(result, OUT / "links.png")
    print(f"\n{figure.table(result)}\n\n{OUT / 'links.json'}\n{OUT / 'links.png'}")


if __name__ == "__main__":
    main()
