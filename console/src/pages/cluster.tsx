// The cluster at a glance, as it is now, and what to do about it.
import type { ComponentChildren } from "preact";
import { call, get, part, useLoad } from "../api";
import { bytes, clock, duration, number } from "../format";
import { link } from "../router";
import { T } from "../texts";
import { attempt, Badge, Bar, Button, Copyable, Head, Icon, Wait } from "../ui";

interface Repair {
  paused: boolean;
  active: number;
  queued: number;
  replicas_per_second: number;
  bytes_per_second: number;
  bytes_left: number;
  seconds_left: number | null;
}

interface Glance {
  cluster: string;
  used_bytes: number;
  free_bytes: number;
  total_bytes: number;
  files: number;
  bytes: number;
  chunks: number;
  below_goal: number;
  corrupt: number;
  lost: number;
  garbage_replicas: number;
  garbage_bytes: number;
  replication: number;
  trash: { files: number; bytes: number; kept_seconds: number };
  repair: Repair;
  moves: { active: number; queued: number };
  servers: { total: number; live: number };
  metadata: { used_bytes: number; disk_free_bytes: number };
  warnings: { level: string; text: string; commands: string[] }[];
}

export function Cluster() {
  const glance = useLoad("cluster", (signal) => get<Glance>("/admin/cluster", {}, signal), 2);
  return (
    <>
      <Head title={T.cluster.title} />
      <Wait on={glance}>
        {(now) => (
          <>
            <Warnings list={now.warnings} />
            <Tiles now={now} />
            <Repairs now={now} done={glance.reload} />
          </>
        )}
      </Wait>
      <Plots />
    </>
  );
}

// As high with many as with none, so that nothing below it moves.
function Warnings({ list }: { list: Glance["warnings"] }) {
  return (
    <section class="warnings">
      <h2>{T.cluster.toDo(list.length)}</h2>
      <div role="group" aria-label={T.cluster.toDo(list.length)} tabIndex={0}>
        {list.length === 0 && (
          <p class="problem good">
            <Icon name="check" />
            {T.cluster.well}
          </p>
        )}
        <ul>
          {list.map(({ level, text, commands }) => (
            <li key={text} class={`problem ${level === "warning" ? "" : "warn"}`}>
              <Icon name="warn" />
              <div>
                <strong class="unseen">{T.cluster.levels[level] ?? level}: </strong>
                {text}
                {commands.map((command) => (
                  <Copyable key={command} text={command} />
                ))}
              </div>
            </li>
          ))}
        </ul>
      </div>
    </section>
  );
}

function Tile({
  title,
  value,
  hint,
  level,
  to,
  children,
}: {
  title: string;
  value: string;
  hint?: string;
  level?: string | undefined;
  to?: string;
  children?: ComponentChildren;
}) {
  return (
    <div class={`tile ${level ?? ""}`}>
      <h2>{to ? <a href={to}>{title}</a> : title}</h2>
      <strong>{value}</strong>
      {hint && <small>{hint}</small>}
      {children}
    </div>
  );
}

function Tiles({ now }: { now: Glance }) {
  const { trash, servers, metadata } = now;
  const used = T.cluster.usedOf(bytes(now.used_bytes), bytes(now.total_bytes));
  return (
    <div class="tiles">
      <Tile title={T.cluster.used} value={used} hint={T.cluster.free(bytes(now.free_bytes))}>
        <Bar used={now.used_bytes} total={now.total_bytes} label={used} />
      </Tile>
      <Tile
        title={T.cluster.files}
        value={number(now.files)}
        hint={T.cluster.inFiles(bytes(now.bytes))}
      />
      <Tile
        title={T.cluster.chunks}
        value={number(now.chunks)}
        hint={T.cluster.goal(now.replication)}
      />
      <Tile
        title={T.cluster.servers}
        value={T.cluster.live(servers.live, servers.total)}
        level={servers.live < servers.total ? "warn" : undefined}
        to={link("servers")}
      />
      <Tile
        title={T.cluster.belowGoal}
        value={number(now.below_goal)}
        hint={T.cluster.belowGoalHint}
        level={now.below_goal ? "warn" : undefined}
      />
      <Tile
        title={T.cluster.corrupt}
        value={number(now.corrupt)}
        hint={T.cluster.corruptHint}
        level={now.corrupt ? "warn" : undefined}
      />
      <Tile
        title={T.cluster.lost}
        value={number(now.lost)}
        hint={T.cluster.lostHint}
        level={now.lost ? "bad" : undefined}
      />
      <Tile
        title={T.cluster.garbage}
        value={bytes(now.garbage_bytes)}
        hint={T.cluster.garbageHint(number(now.garbage_replicas))}
      />
      <Tile
        title={T.cluster.trash}
        value={trash.bytes < 0 ? "…" : bytes(trash.bytes)}
        hint={T.cluster.trashHint(number(Math.max(0, trash.files)), duration(trash.kept_seconds))}
      />
      <Tile
        title={T.cluster.metadata}
        value={metadata.used_bytes < 0 ? T.cluster.unknown : bytes(metadata.used_bytes)}
        {...(metadata.disk_free_bytes < 0
          ? {}
          : { hint: T.cluster.metadataHint(bytes(metadata.disk_free_bytes)) })}
      />
    </div>
  );
}

function Repairs({ now, done }: { now: Glance; done: () => void }) {
  const { repair, moves } = now;
  const set = (paused: boolean): void =>
    void attempt(async () => {
      await call("PUT", "/admin/cluster/repair", { body: { paused } });
      done();
    });
  const busy = repair.active + repair.queued > 0;
  return (
    <section class="part">
      <header>
        <div>
          <h2>{T.cluster.repair}</h2>
          <p class="about">
            {repair.paused ? (
              <Badge kind="warn">{T.cluster.paused}</Badge>
            ) : busy ? (
              <>
                {T.cluster.repairState(repair.active, repair.queued)}
                {" · "}
                {T.cluster.repairRate(bytes(repair.bytes_per_second), bytes(repair.bytes_left))}
                {repair.seconds_left !== null &&
                  ` · ${T.cluster.timeLeft(duration(repair.seconds_left))}`}
              </>
            ) : now.below_goal ? (
              T.cluster.repairState(0, now.below_goal)
            ) : (
              T.cluster.repairNone
            )}
          </p>
          <p class="about">{T.cluster.moves(moves.active, moves.queued)}</p>
        </div>
        <Button icon={repair.paused ? "play" : "stop"} onClick={() => set(!repair.paused)}>
          {repair.paused ? T.cluster.resume : T.cluster.pause}
        </Button>
      </header>
    </section>
  );
}

// --- plots ----------------------------------------------------------------------------------

interface Series {
  at: number[];
  values: Record<string, (number | null)[]>;
}

export interface Line {
  label: string;
  values: (number | null)[];
}

const rate = (value: number): string => `${bytes(value)}/s`;
const count = (value: number): string => (value < 10 ? value.toFixed(1) : number(Math.round(value)));
const time = (value: number): string => `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;

const PLOTS: {
  title: string;
  lines: [name: string, label: string][];
  format: (value: number) => string;
}[] = [
  {
    title: T.cluster.throughput,
    lines: [
      ["upload_bytes_per_second", T.cluster.upload],
      ["download_bytes_per_second", T.cluster.download],
    ],
    format: rate,
  },
  {
    title: T.cluster.latency,
    lines: [
      ["request_seconds_mean", T.cluster.mean],
      ["request_seconds_p99", T.cluster.p99],
      ["master_seconds", T.cluster.master],
    ],
    format: time,
  },
  {
    title: T.cluster.requests,
    lines: [["requests_per_second", T.cluster.perSecond]],
    format: count,
  },
  {
    title: T.cluster.repairs,
    lines: [["repair_bytes_per_second", T.cluster.repaired]],
    format: rate,
  },
];

const loadPlot = part(() => import("./plot"));

function Plots() {
  const series = useLoad(
    "series",
    (signal) => get<Series>("/admin/cluster/series", {}, signal),
    10,
  );
  const plot = useLoad("plot", loadPlot);
  return (
    <section class="part">
      <header>
        <div>
          <h2>{T.cluster.plots}</h2>
          <p class="about">{T.cluster.plotsAbout}</p>
        </div>
      </header>
      <Wait on={plot}>
        {({ Plot }) => (
          <Wait on={series}>
            {({ at, values }) =>
              Object.values(values).some((each) => each.some((value) => value !== null)) ? (
                <div class="plots">
                  {PLOTS.map(({ title, lines, format }) => (
                    <figure key={title}>
                      <figcaption>{title}</figcaption>
                      <Plot
                        at={at}
                        clock={clock}
                        format={format}
                        lines={lines.map(([name, label]) => ({ label, values: values[name] ?? [] }))}
                      />
                    </figure>
                  ))}
                </div>
              ) : (
                <p class="hint">{T.cluster.noPlots}</p>
              )
            }
          </Wait>
        )}
      </Wait>
    </section>
  );
}
