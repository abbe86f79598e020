"""What a run found, as a picture: a panel for each figure, a bar for each way in."""

from __future__ import annotations

from pathlib import Path

from bench.peers.table import FIGURES, WAYS, Result
from bench.picture import FAINT, INK, plt

COLORS = {
    "ours-http": "#2a9d6f",
    "ours-s3": "#7cc9a8",
    "seaweedfs-s3": "#5a93cc",
    "ours-own": "#1b6e4d",
    "seaweedfs-http": "#2f6db3",
    "seaweedfs-own": "#7fa8d6",
    "moosefs": "#8e5aa8",
}


def draw(result: Result, conditions: str, path: Path) -> None:
    ways = [way for way in WAYS if way in result["figures"]]
    with plt.rc_context({"font.size": 9, "text.color": INK}):
        fig, panels = plt.subplots(2, 4, figsize=(14, 6.4))
        *shown, legend = panels.flat
        for axes, (key, what) in zip(shown, FIGURES.items(), strict=True):
            axes.set_title(what.replace("`", ""), loc="left", fontsize=10, fontweight="bold")
            for row, way in enumerate(reversed(ways)):
                runs = result["runs"][way].get(key, [])
                figure = result["figures"][way].get(key, 0.0)
                axes.barh(row, figure, color=COLORS[way], height=0.7)
                axes.scatter(
                    runs, [row] * len(runs), s=9, color="white", edgecolors=INK, linewidths=0.6,
                    zorder=3,
                )  # fmt: skip
                said = f"{figure:,.0f}" if runs else "not offered"
                axes.annotate(
                    said, (max([figure, *runs]), row), (5, 0), textcoords="offset points",
                    va="center", color=INK if runs else FAINT,
                )  # fmt: skip
            axes.margins(x=0.25)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=5)
            axes.set_yticks([])
            axes.tick_params(axis="x", labelsize=7.5, colors=FAINT)
            axes.spines[["top", "right", "left"]].set_visible(False)
        legend.axis("off")
        for row, way in enumerate(ways):
            title, durability = WAYS[way]
            at = 0.98 - 0.145 * row
            legend.text(0, at, f"■ {title}", color=COLORS[way], fontweight="bold", va="top")
            legend.text(0.05, at - 0.05, durability.replace(", ", ",\n"), fontsize=7.5,
                        color=FAINT, va="top")  # fmt: skip
        fig.suptitle(
            "Beside others on the same machine: 3 replicas; the longer bar is the faster",
            x=0.012, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        fig.text(0.012, 0.012, f"{conditions}; dots: single rounds", fontsize=8, color=FAINT)
        fig.tight_layout(rect=(0, 0.03, 1, 0.98), w_pad=2)
        fig.savefig(path, dpi=130)
        plt.close(fig)
