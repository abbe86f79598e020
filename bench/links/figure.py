"""What a run found, for people: a table, and figure 3."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot as plt

from bench import picture, report

#: MB/s of the paper's figure 3, with 1 and with 16 clients.
PAPER: dict[str, dict[int, float]] = {
    "read": {1: 10, 16: 94},
    "write": {1: 6.3, 16: 35},
    "append": {1: 6.0, 16: 4.8},
}
TITLES = {
    "read": "Reads, one region at a time",
    "read4": "Reads, four at once",
    "write": "Writes",
    "append": "Record appends to one file",
}


def conditions(result: report.Result) -> str:
    network = f"{result['chunkservers']} chunkservers, links of {result['mbit']} Mbit/s"
    return f"{network}; {report.conditions(result).replace('loopback, ', '')}"


def table(result: report.Result) -> str:
    lines = [
        conditions(result),
        "",
        "        clients    MB/s   limit  of limit   servers' links       cores           bound by",
        "                                            mean  busiest   ours  waited  idle",
    ]  # fmt: skip
    for row in result["rows"]:
        lines.append(
            f"{row['load']:7} {row['clients']:7} {row['mb_s']:7.1f} {row['limit_mb_s']:7.1f} "
            f"{row['of_limit']:9.0%} {row['servers_links_mean']:7.0%} "
            f"{row['servers_links_max']:8.0%} {row['cores_used']:6.1f} "
            f"{row['cores_waited_for']:7.1f} {row['cores_idle']:5.0%}  {row['bound_by']}"
        )
    return "\n".join(lines)


def draw(result: report.Result, path: Path) -> None:
    """Figure 3: each load beside the limit of its links."""
    loads = [load for load in TITLES if any(row["load"] == load for row in result["rows"])]
    as_paper = (result["chunkservers"], result["mbit"]) == (16, 100)
    with plt.rc_context({"font.size": 10, "text.color": picture.INK}):
        fig, panels = plt.subplots(1, len(loads), figsize=(4 * len(loads), 4.6), squeeze=False)
        for axes, load in zip(panels[0], loads, strict=True):
            rows = [row for row in result["rows"] if row["load"] == load]
            clients = [row["clients"] for row in rows]
            picture.bare_axes(axes, TITLES[load])
            axes.plot(clients, [row["limit_mb_s"] for row in rows], color=picture.FAINT, ls="--")
            axes.plot(clients, [row["mb_s"] for row in rows], color=picture.READ, marker="o")
            for row in rows:
                axes.annotate(
                    f"{row['of_limit']:.0%}", (row["clients"], row["mb_s"]), (0, -14),
                    textcoords="offset points", ha="center", fontsize=8.5, color=picture.INK,
                )  # fmt: skip
            if as_paper and load in PAPER:
                axes.scatter(
                    *zip(*PAPER[load].items(), strict=True), color=picture.SMALL_COLOR, s=20
                )
            axes.set_ylim(0, 1.1 * max(row["limit_mb_s"] for row in rows))
            axes.set_xticks(clients)
            axes.grid(axis="y", color=picture.GRID)
        panels[0][0].set_ylabel("MB/s, all clients together")
        picture.caption(panels[0][0], "clients; dashed: the links' limit in payload"
                       + "; violet: the paper's figures" * as_paper)  # fmt: skip
        fig.text(0.012, 0.015, conditions(result), fontsize=8.5, color=picture.FAINT)
        fig.tight_layout(rect=(0, 0.04, 1, 1), w_pad=2)
        fig.savefig(path, dpi=130)
        plt.close(fig)
