// Lines over time, by uPlot. Loaded when it is shown.
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { T } from "../texts";
import type { Line } from "./cluster";

const HEIGHT = 170;
/** They can be told apart in light and dark, and by people who do not see red or green. */
const COLORS = ["#3584d4", "#d98324", "#9a6fd0"];
const SOFT = "#8592a3";

export function Plot({
  at,
  lines,
  clock,
  format,
}: {
  at: number[];
  lines: Line[];
  /** What writes the times of `at`. */
  clock: (seconds: number) => string;
  format: (value: number) => string;
}) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>();
  const data = [at, ...lines.map(({ values }) => values)] as uPlot.AlignedData;
  useEffect(() => {
    const element = box.current as HTMLDivElement;
    const axis = { stroke: SOFT, grid: { stroke: `${SOFT}33`, width: 1 }, ticks: { show: false } };
    const made = new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        scales: { y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 10] } },
        axes: [
          { ...axis, values: (_, ticks) => ticks.map(clock) },
          { ...axis, size: 78, values: (_, ticks) => ticks.map(format) },
        ],
        series: [
          { label: "", value: (_, value) => (value ? clock(value) : "") },
          ...lines.map(({ label }, index) => ({
            label,
            stroke: COLORS[index] ?? SOFT,
            width: 1.5,
            spanGaps: false,
            points: { show: false },
            value: (_: uPlot, value: number | null) =>
              value === null ? T.common.none : format(value),
          })),
        ],
      },
      data,
      element,
    );
    plot.current = made;
    const watch = new ResizeObserver(() =>
      made.setSize({ width: element.clientWidth, height: HEIGHT }),
    );
    watch.observe(element);
    return () => {
      watch.disconnect();
      made.destroy();
    };
  }, []);
  useEffect(() => plot.current?.setData(data), [at]);
  return <div ref={box} />;
}
