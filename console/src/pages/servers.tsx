// Chunkservers and their disks.
import { useState } from "preact/hooks";
import { call, get, request, useLoad } from "../api";
import { bytes, duration, number, time } from "../format";
import { T } from "../texts";
import {
  ask,
  attempt,
  Badge,
  Bar,
  confirm,
  Dialog,
  Empty,
  Field,
  Head,
  Icon,
  Menu,
  say,
  Wait,
  type Item,
} from "../ui";

interface Disk {
  path: string;
  id: string;
  state: string;
  reason: string;
  total_bytes: number;
  free_bytes: number;
  chunks: number;
  errors: number;
}

interface Server {
  id: string;
  address: string;
  rack: string;
  state: string;
  heartbeat_seconds: number;
  chunks: number;
  used_bytes: number;
  free_bytes: number;
  total_bytes: number;
  drain: string;
  drain_chunks: number;
  drain_uploads: number;
  drain_lost: number;
  maintenance_seconds: number;
  scrub: {
    done_bytes: number;
    total_bytes: number;
    began_at: number | null;
    ended_at: number | null;
  };
  disks: Disk[];
}

const one = (server: Server, rest = ""): string =>
  `/admin/cluster/servers/${encodeURIComponent(server.id)}${rest}`;

const KINDS: Record<string, string> = {
  live: "good",
  ok: "good",
  dead: "bad",
  failed: "bad",
  missing: "bad",
  silent: "warn",
  slow: "warn",
  full: "warn",
  draining: "info",
};

export function Servers() {
  const list = useLoad(
    "servers",
    async (signal) =>
      (await get<{ servers: Server[] }>("/admin/cluster/servers", {}, signal)).servers,
    3,
  );
  return (
    <>
      <Head title={T.servers.title} about={T.servers.about} />
      <Wait on={list}>
        {(rows) =>
          rows.length ? (
            <div class="servers">
              {rows.map((row) => (
                <One key={row.id} server={row} done={list.reload} />
              ))}
            </div>
          ) : (
            <Empty icon="disk" title={T.servers.empty} hint={T.servers.emptyHint} />
          )
        }
      </Wait>
    </>
  );
}

function One({ server, done }: { server: Server; done: () => void }) {
  const post = (rest: string, body: unknown): void =>
    void attempt(async () => {
      await call("POST", one(server, rest), { body });
      done();
    });
  const forget = (): void =>
    confirm({
      title: T.servers.forgetTitle(server.id),
      text: T.servers.forgetText,
      action: T.servers.forget.replace("…", ""),
      run: async () => {
        await request("DELETE", one(server));
        done();
      },
    });
  const items: (Item | false)[] = [
    server.drain
      ? { text: T.servers.drainCancel, run: () => post("/drain", { cancel: true }) }
      : {
          text: T.servers.drain,
          run: () => ask((close) => <Drain {...{ server, close, done }} />),
        },
    server.maintenance_seconds > 0
      ? { text: T.servers.maintainEnd, run: () => post("/maintenance", { seconds: 0 }) }
      : { text: T.servers.maintain, run: () => post("/maintenance", { seconds: 3600 }) },
    {
      text: T.servers.addDisk,
      icon: "plus",
      run: () => ask((close) => <AddDisk {...{ server, close, done }} />),
    },
    server.state !== "live" && {
      text: T.servers.forget,
      icon: "trash",
      danger: true,
      run: forget,
    },
  ];
  const space = T.cluster.usedOf(bytes(server.used_bytes), bytes(server.total_bytes));
  const { scrub } = server;
  return (
    <article class="card server">
      <header>
        <Icon name="cluster" />
        <div>
          <h2>{server.id}</h2>
          <p>
            <code>{server.address}</code> · {T.servers.rack} {server.rack}
          </p>
        </div>
        <Badge kind={KINDS[server.state] ?? ""}>{T.servers.states[server.state] ?? server.state}</Badge>
        {server.drain && (
          <Badge kind={server.drain === "drained" ? "good" : "info"}>
            {server.drain === "drained"
              ? T.servers.drained
              : T.servers.draining(server.drain_chunks, server.drain_uploads, server.drain_lost)}
          </Badge>
        )}
        {server.maintenance_seconds > 0 && (
          <Badge kind="warn">{T.servers.maintenance(duration(server.maintenance_seconds))}</Badge>
        )}
        <Menu label={`${T.common.actions}: ${server.id}`} items={items} />
      </header>
      <div class="meters">
        <div>
          <span>{T.servers.space}</span>
          <span class="number">{space}</span>
          <Bar used={server.used_bytes} total={server.total_bytes} label={space} />
        </div>
        <p>
          {number(server.chunks)} {T.servers.chunks.toLowerCase()} ·{" "}
          {T.servers.heartbeat(duration(server.heartbeat_seconds))}
          {scrub.ended_at
            ? ` · ${T.servers.scrubbed(time(scrub.ended_at))}`
            : scrub.total_bytes > 0 &&
              ` · ${T.servers.scrubbing(`${Math.floor((100 * scrub.done_bytes) / scrub.total_bytes)} %`)}`}
        </p>
      </div>
      <div class="scroll" tabIndex={0} role="group" aria-label={`${T.servers.disks}: ${server.id}`}>
        <table>
          <thead>
            <tr>
              <th scope="col">{T.servers.disk}</th>
              <th scope="col">{T.servers.state}</th>
              <th scope="col">{T.servers.space}</th>
              <th scope="col" class="number">
                {T.servers.chunks}
              </th>
              <td />
            </tr>
          </thead>
          <tbody>
            {server.disks.map((disk) => (
              <DiskRow key={disk.path} {...{ server, disk, done }} />
            ))}
          </tbody>
        </table>
      </div>
    </article>
  );
}

function DiskRow({ server, disk, done }: { server: Server; disk: Disk; done: () => void }) {
  const order = async (action: string): Promise<void> => {
    await call("POST", one(server, "/disks"), { body: { path: disk.path, action } });
    say(T.servers.ordered);
    done();
  };
  const remove = (): void =>
    confirm({
      title: T.servers.removeDiskTitle(disk.path),
      text: T.servers.removeDiskText,
      action: T.servers.diskActions.remove.replace("…", ""),
      run: () => order("remove"),
    });
  const used = disk.total_bytes - disk.free_bytes;
  const space = T.cluster.usedOf(bytes(used), bytes(disk.total_bytes));
  const can: (keyof typeof T.servers.diskActions)[] =
    disk.state === "draining"
      ? ["undrain", "remove"]
      : disk.state === "failed" || disk.state === "missing"
        ? ["retry", "remove"]
        : ["drain", "remove"];
  return (
    <tr>
      <td class="wrap">
        <code>{disk.path}</code>
      </td>
      <td>
        <Badge kind={KINDS[disk.state] ?? ""}>{T.servers.states[disk.state] ?? disk.state}</Badge>{" "}
        {disk.reason}
        {disk.errors > 0 && ` ${T.servers.errors(disk.errors)}`}
      </td>
      <td>
        <small>{space}</small>
        <Bar used={used} total={disk.total_bytes} label={space} />
      </td>
      <td class="number">{number(disk.chunks)}</td>
      <td class="act">
        <Menu
          label={`${T.common.actions}: ${disk.path}`}
          items={can.map((action) => ({
            text: T.servers.diskActions[action],
            danger: action === "remove",
            run: () => (action === "remove" ? remove() : void attempt(() => order(action))),
          }))}
        />
      </td>
    </tr>
  );
}

interface About {
  server: Server;
  close: () => void;
  done: () => void;
}

function Drain({ server, close, done }: About) {
  const [fewer, setFewer] = useState(false);
  const submit = async (): Promise<void> => {
    await call("POST", one(server, "/drain"), { body: { cancel: false, fewer_racks: fewer } });
    done();
  };
  return (
    <Dialog
      title={T.servers.drainTitle(server.id)}
      action={T.servers.drain.replace("…", "")}
      submit={submit}
      close={close}
    >
      <p>{T.servers.drainText}</p>
      <div class="choices">
        <label>
          <input type="checkbox" checked={fewer} onChange={() => setFewer(!fewer)} />
          <span>{T.servers.fewerRacks}</span>
        </label>
      </div>
    </Dialog>
  );
}

function AddDisk({ server, close, done }: About) {
  const [path, setPath] = useState("");
  const [force, setForce] = useState(false);
  const submit = async (): Promise<void> => {
    await call("POST", one(server, "/disks"), { body: { path, action: "add", force } });
    say(T.servers.ordered);
    done();
  };
  return (
    <Dialog
      title={`${T.servers.addDisk.replace("…", "")}: ${server.id}`}
      action={T.servers.addDisk.replace("…", "")}
      submit={submit}
      disabled={!path.startsWith("/")}
      close={close}
    >
      <Field label={T.servers.path} hint={T.servers.addDiskText}>
        <input
          name="path"
          autofocus
          value={path}
          onInput={(event) => setPath(event.currentTarget.value)}
        />
      </Field>
      <div class="choices">
        <label>
          <input type="checkbox" checked={force} onChange={() => setForce(!force)} />
          <span>{T.servers.addDiskForce}</span>
        </label>
      </div>
    </Dialog>
  );
}
