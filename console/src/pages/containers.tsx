// Containers: their state as it happens, and one of them with its ports, paths, logs and terminal.
import { useEffect, useRef, useState } from "preact/hooks";
import { call, get, LOOK_MS, part, request, session, socketAddress, useLoad } from "../api";
import { bytes, fullTime } from "../format";
import { go, link, place } from "../router";
import { Store, useStore } from "../store";
import { T } from "../texts";
import {
  ask,
  attempt,
  Badge,
  Button,
  Copyable,
  Dialog,
  Empty,
  Field,
  Head,
  Icon,
  Menu,
  Rows,
  say,
  Trouble,
  Wait,
  type Item,
} from "../ui";
import { loadSshKeys, NewSshKey } from "./access";

interface Container {
  id: string;
  name: string;
  status: string;
  hostname: string;
  external_ip?: string;
  ssh_command?: string;
  memory_mb: number;
  memory_used_mb?: number;
  storage_gb: number;
  storage_used_gb?: number;
  instance_type: string;
  created_at: string;
  ssh_enabled: boolean;
  reason?: string;
}

const one = (id: string, rest = ""): string =>
  `/compute/containers/${encodeURIComponent(id)}${rest}`;

/** Counts what /compute/ws has reported, while some page follows it. */
const changes = new Store(0);

function useChanges(): number {
  const user = useStore(session);
  useEffect(() => {
    let socket: WebSocket | null = null;
    let timer = 0;
    const open = (): void => {
      socket = new WebSocket(socketAddress("/compute/ws"));
      socket.onmessage = () => changes.set(changes.value + 1);
      socket.onclose = () => {
        timer = window.setTimeout(open, 3000);
      };
    };
    open();
    return () => {
      clearTimeout(timer);
      if (socket) {
        socket.onclose = null;
        socket.close();
      }
    };
  }, [user?.token]);
  return useStore(changes);
}

function State({ status }: { status: string }) {
  const kind = { running: "good", failed: "bad", stopped: "" }[status] ?? "info";
  return <Badge kind={kind}>{T.containers.status[status] ?? status}</Badge>;
}

export function Containers() {
  const change = useChanges();
  const list = useLoad(
    "containers",
    async (signal) =>
      (await get<{ containers: Container[] }>("/compute/containers", {}, signal)).containers,
    15,
  );
  useEffect(() => {
    if (change) list.reload();
  }, [change]);
  const create = (): void => ask((close) => <NewContainer close={close} done={list.reload} />);
  return (
    <>
      <Head title={T.containers.title} about={T.containers.about}>
        <Button icon="plus" look="main" onClick={create}>
          {T.containers.create}
        </Button>
      </Head>
      <Wait on={list}>
        {(rows) =>
          rows.length ? (
            <div class="cards">
              {rows.map((row) => (
                <article class="card" key={row.id}>
                  <a class="main" href={link("containers", row.id)}>
                    <Icon name="box" />
                    <h2>{row.name}</h2>
                    <p>
                      {row.instance_type} · {bytes(row.memory_mb * 1024 ** 2)} ·{" "}
                      {bytes(row.storage_gb * 1024 ** 3)}
                    </p>
                  </a>
                  {row.reason && <p class="reason">{row.reason}</p>}
                  <div class="more">
                    <State status={row.status} />
                    <Actions row={row} done={list.reload} />
                  </div>
                </article>
              ))}
            </div>
          ) : (
            <Empty icon="box" title={T.containers.empty} hint={T.containers.emptyHint} />
          )
        }
      </Wait>
    </>
  );
}

/** Whether it is off, and what starts and stops it; `isGoing`: it takes no orders any more. */
function switchOf(row: Container, done: () => void, at = one(row.id)) {
  return {
    isGoing: row.status === "deleting",
    act: (action: "start" | "stop"): void =>
      void attempt(async () => {
        await request("POST", `${at}/${action}`);
        done();
      }),
    isOff: row.status === "stopped" || row.status === "failed",
  };
}

function Actions({ row, done }: { row: Container; done: () => void }) {
  const { act, isOff, isGoing } = switchOf(row, done);
  if (isGoing) return null;
  return (
    <Menu
      label={`${T.common.actions}: ${row.name}`}
      items={[
        isOff && { text: T.containers.start, icon: "play", run: () => act("start") },
        !isOff && { text: T.containers.stop, icon: "stop", run: () => act("stop") },
        row.status === "running" && {
          text: T.containers.terminal,
          icon: "terminal",
          run: () => go(link("containers", row.id, "terminal")),
        },
        {
          text: T.containers.remove,
          icon: "trash",
          danger: true,
          run: () => ask((close) => <Remove row={row} close={close} done={done} />),
        },
      ]}
    />
  );
}

function Remove({
  row,
  close,
  done,
  at = one(row.id),
}: {
  row: Container;
  close: () => void;
  done: () => void;
  at?: string;
}) {
  const submit = async (): Promise<void> => {
    await request("DELETE", at);
    say(T.containers.removed(row.name));
    done();
  };
  return (
    <Dialog
      title={T.containers.removeTitle(row.name)}
      action={T.common.remove}
      look="danger"
      submit={submit}
      close={close}
    >
      <p>{T.containers.removeText}</p>
    </Dialog>
  );
}

const TYPES = {
  nano: "arm64, 0.5",
  micro: "arm64, 1",
  mini: "arm64, 2",
  tiny: "amd64, 1",
  small: "amd64, 2",
  medium: "amd64, 4",
};

function NewContainer({ close, done }: { close: () => void; done: () => void }) {
  const keys = useLoad("ssh-keys", loadSshKeys);
  const [name, setName] = useState("");
  const [type, setType] = useState("nano");
  const [memory, setMemory] = useState(512);
  const [disk, setDisk] = useState(5);
  const [without, setWithout] = useState<ReadonlySet<number>>(new Set());
  const [mounts, setMounts] = useState("/root");
  const [ssh, setSsh] = useState(true);
  const chosen = keys.data?.filter(({ id }) => !without.has(id)).map(({ id }) => id) ?? [];
  const submit = async (): Promise<void> => {
    const body = {
      name,
      instance_type: type,
      memory_mb: memory,
      storage_gb: disk,
      ssh_key_ids: chosen,
      ssh_enabled: ssh,
      mount_paths: mounts.split("\n").map((path) => path.trim()).filter(Boolean),
    };
    const made = await call<Container>("POST", "/compute/containers", { body });
    done();
    go(link("containers", made.id));
  };
  const keyed = async (): Promise<false> => {
    keys.change(await loadSshKeys());
    return false; // the form for the container is in this one's place
  };
  if (keys.data?.length === 0)
    return <NewSshKey why={T.containers.keyFirst} close={close} done={keyed} />;
  const toggle = (id: number): void => {
    const changed = new Set(without);
    if (!changed.delete(id)) changed.add(id);
    setWithout(changed);
  };
  return (
    <Dialog
      title={T.containers.create}
      action={T.common.create}
      submit={submit}
      disabled={!name.trim() || !chosen.length}
      close={close}
    >
      <Field label={T.common.name}>
        <input
          name="name"
          autofocus
          maxLength={64}
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
        />
      </Field>
      <div class="columns">
        <Field label={T.containers.type}>
          <select value={type} onChange={(event) => setType(event.currentTarget.value)}>
            {Object.entries(TYPES).map(([each, about]) => (
              <option key={each} value={each}>
                {T.containers.typeIs(each, about)}
              </option>
            ))}
          </select>
        </Field>
        <Field label={T.containers.memory}>
          <input
            type="number"
            min={128}
            max={65536}
            value={memory}
            onInput={(event) => setMemory(event.currentTarget.valueAsNumber)}
          />
        </Field>
        <Field label={T.containers.disk}>
          <input
            type="number"
            min={1}
            max={1000}
            value={disk}
            onInput={(event) => setDisk(event.currentTarget.valueAsNumber)}
          />
        </Field>
      </div>
      <fieldset class="choices">
        <legend>{T.containers.keys}</legend>
        <Trouble on={keys} />
        {keys.data?.map(({ id, name }) => (
          <label key={id}>
            <input type="checkbox" checked={!without.has(id)} onChange={() => toggle(id)} />
            <span>{name}</span>
          </label>
        ))}
        <label>
          <input type="checkbox" checked={ssh} onChange={() => setSsh(!ssh)} />
          <span>{T.containers.sshOn}</span>
        </label>
      </fieldset>
      <Field label={T.containers.mounts} hint={T.containers.mountsHint}>
        <textarea value={mounts} onInput={(event) => setMounts(event.currentTarget.value)} />
      </Field>
    </Dialog>
  );
}

// --- of all users, for administrators --------------------------------------------------------

interface Owned extends Container {
  owner: string;
  owner_id: string;
}

const ALL = "/compute/admin/containers";
const PAGE = 100;

export function AllContainers() {
  const [limit, setLimit] = useState(PAGE);
  const load = async (signal: AbortSignal): Promise<{ rows: Owned[]; hasMore: boolean }> => {
    const answer = await request("GET", ALL, { query: { limit }, signal, ms: LOOK_MS });
    return { rows: (await answer.json()) as Owned[], hasMore: answer.headers.has("Link") };
  };
  const list = useLoad(`all containers ${limit}`, load, 10);
  // What is shown stays while more are read.
  const last = useRef(list.data);
  last.current = list.data ?? last.current;
  const items = (row: Owned): (Item | false)[] => {
    const at = `${ALL}/${encodeURIComponent(row.id)}`;
    const { act, isOff, isGoing } = switchOf(row, list.reload, at);
    if (isGoing) return [];
    return [
      isOff && { text: T.containers.start, icon: "play", run: () => act("start") },
      !isOff && { text: T.containers.stop, icon: "stop", run: () => act("stop") },
      {
        text: T.containers.remove,
        icon: "trash",
        danger: true,
        run: () => ask((close) => <Remove {...{ row, close, at }} done={list.reload} />),
      },
    ];
  };
  return (
    <>
      <Head title={T.containers.all} about={T.containers.allAbout} />
      <Wait on={{ ...list, data: last.current }}>
        {({ rows, hasMore }) =>
          rows.length ? (
            <>
              <Rows
                label={T.containers.all}
                rows={rows}
                id={(row) => row.id}
                columns={[
                  {
                    head: T.common.name,
                    names: true,
                    cell: (row) => (
                      <>
                        {row.name} <code>{row.id}</code>
                      </>
                    ),
                  },
                  { head: T.containers.owner, cell: (row) => row.owner || row.owner_id },
                  { head: T.containers.state, cell: (row) => <State status={row.status} /> },
                  {
                    head: T.containers.size,
                    kind: "later",
                    cell: (row) =>
                      `${row.instance_type} · ${bytes(row.memory_mb * 1024 ** 2)} · ` +
                      bytes(row.storage_gb * 1024 ** 3),
                  },
                  {
                    head: T.containers.created,
                    kind: "later",
                    at: (row) => Date.parse(row.created_at) / 1000,
                  },
                  {
                    cell: (row) => (
                      <Menu label={`${T.common.actions}: ${row.name}`} items={items(row)} />
                    ),
                  },
                ]}
              />
              {hasMore && (
                <Button onClick={() => setLimit(limit + PAGE)}>{T.common.more}</Button>
              )}
            </>
          ) : (
            <Empty icon="box" title={T.containers.allEmpty} hint={T.containers.allEmptyHint} />
          )
        }
      </Wait>
    </>
  );
}

// --- one ------------------------------------------------------------------------------------

export function Container() {
  const { path } = useStore(place);
  const id = path[1] ?? "";
  const tab = path[2] ?? "overview";
  const change = useChanges();
  const found = useLoad(`container ${id}`, (signal) => get<Container>(one(id), {}, signal), 5);
  useEffect(() => {
    if (change) found.reload();
  }, [change]);
  const row = found.data;
  if (found.error?.status === 404 || found.error?.status === 400)
    return (
      <Empty icon="box" title={T.containers.gone} hint={T.containers.goneHint}>
        <a href={link("containers")}>{T.containers.title}</a>
      </Empty>
    );
  return (
    <>
      <Head
        title={row?.name ?? id}
        crumbs={
          <nav class="crumbs" aria-label={T.containers.title}>
            <ol>
              <li>
                <a href={link("containers")}>{T.containers.title}</a>
              </li>
              <li>
                <h1>{row?.name ?? id}</h1>
              </li>
              {row && (
                <li>
                  <State status={row.status} />
                </li>
              )}
            </ol>
          </nav>
        }
      >
        {row && <Buttons row={row} done={found.reload} />}
      </Head>
      {row?.reason && <p class="problem warn">{row.reason}</p>}
      <nav class="tabs" aria-label={row?.name ?? id}>
        {(["overview", "terminal", "logs"] as const).map((each) => (
          <a
            key={each}
            href={each === "overview" ? link("containers", id) : link("containers", id, each)}
            aria-current={each === tab ? "page" : undefined}
          >
            {T.containers[each]}
          </a>
        ))}
      </nav>
      <Wait on={found}>
        {(row) =>
          tab === "terminal" ? (
            <Terminal row={row} />
          ) : tab === "logs" ? (
            <Logs row={row} />
          ) : (
            <Overview row={row} done={found.reload} />
          )
        }
      </Wait>
    </>
  );
}

function Buttons({ row, done }: { row: Container; done: () => void }) {
  const { act, isOff, isGoing } = switchOf(row, done);
  if (isGoing) return null;
  return (
    <>
      {isOff ? (
        <Button icon="play" look="main" onClick={() => act("start")}>
          {T.containers.start}
        </Button>
      ) : (
        <Button icon="stop" onClick={() => act("stop")}>
          {T.containers.stop}
        </Button>
      )}
      <Button
        icon="trash"
        look="danger"
        onClick={() => {
          const leave = (): void => go(link("containers"));
          ask((close) => <Remove row={row} close={close} done={leave} />);
        }}
      >
        {T.containers.remove}
      </Button>
    </>
  );
}

function Overview({ row, done }: { row: Container; done: () => void }) {
  const toggle = (): void =>
    void attempt(async () => {
      await request("PUT", one(row.id, "/ssh"), { body: { ssh_enabled: !row.ssh_enabled } });
      done();
    });
  const memory = bytes(row.memory_mb * 1024 ** 2);
  const disk = bytes(row.storage_gb * 1024 ** 3);
  return (
    <>
      <dl class="facts">
        <dt>{T.containers.hostname}</dt>
        <dd>
          <code>{row.hostname}</code>
        </dd>
        {row.external_ip && (
          <>
            <dt>{T.containers.address}</dt>
            <dd>
              <code>{row.external_ip}</code>
            </dd>
          </>
        )}
        <dt>{T.containers.command}</dt>
        <dd>
          {row.ssh_command ? <Copyable text={row.ssh_command} /> : T.containers.sshOff}
          <Button onClick={toggle}>
            {row.ssh_enabled ? T.containers.sshTurnOff : T.containers.sshOn}
          </Button>
        </dd>
        <dt>{T.containers.usage}</dt>
        <dd>
          {row.memory_used_mb === undefined
            ? memory
            : T.containers.used(bytes(row.memory_used_mb * 1024 ** 2), memory)}
          {" · "}
          {row.storage_used_gb === undefined
            ? disk
            : T.containers.used(bytes(row.storage_used_gb * 1024 ** 3), disk)}
        </dd>
        <dt>{T.containers.created}</dt>
        <dd>{fullTime(Date.parse(row.created_at) / 1000)}</dd>
      </dl>
      <Ingress id={row.id} />
      <Mounts id={row.id} done={done} />
    </>
  );
}

interface Rule {
  id: number;
  port: number;
  target_port: number;
}

function Ingress({ id }: { id: string }) {
  const rules = useLoad(
    `ingress ${id}`,
    async (signal) => (await get<{ rules: Rule[] }>(one(id, "/ingress"), {}, signal)).rules,
  );
  const [port, setPort] = useState("");
  const [target, setTarget] = useState("");
  const open = (event: Event): void => {
    event.preventDefault();
    void attempt(async () => {
      const body = { port: Number(port), ...(target ? { target_port: Number(target) } : {}) };
      await call("POST", one(id, "/ingress"), { body });
      setPort("");
      setTarget("");
      rules.reload();
    });
  };
  const close = (rule: number): void =>
    void attempt(async () => {
      await request("DELETE", one(id, `/ingress/${rule}`));
      rules.reload();
    });
  return (
    <section class="part">
      <header>
        <div>
          <h2>{T.containers.ingress}</h2>
          <p class="about">{T.containers.ingressAbout}</p>
        </div>
      </header>
      <Wait on={rules}>
        {(list) =>
          list.length ? (
            <ul class="rows">
              {list.map((rule) => (
                <li key={rule.id}>
                  <code>
                    {rule.port} → {rule.target_port}
                  </code>
                  <Button
                    icon="close"
                    look="quiet"
                    label={T.containers.closePort(rule.port)}
                    onClick={() => close(rule.port)}
                  />
                </li>
              ))}
            </ul>
          ) : (
            <p class="hint">{T.containers.noIngress}</p>
          )
        }
      </Wait>
      <form class="inline" onSubmit={open}>
        <Field label={T.containers.port}>
          <input
            type="number"
            required
            min={1}
            max={65535}
            value={port}
            onInput={(event) => setPort(event.currentTarget.value)}
          />
        </Field>
        <Field label={T.containers.target}>
          <input
            type="number"
            min={1}
            max={65535}
            placeholder={port}
            value={target}
            onInput={(event) => setTarget(event.currentTarget.value)}
          />
        </Field>
        <Button type="submit">{T.containers.open}</Button>
      </form>
    </section>
  );
}

function Mounts({ id, done }: { id: string; done: () => void }) {
  const mounts = useLoad(`mounts ${id}`, async (signal) =>
    (await get<{ mount_paths: string[] }>(one(id, "/mounts"), {}, signal)).mount_paths.join("\n"),
  );
  const [typed, setTyped] = useState<string>();
  const text = typed ?? mounts.data ?? "";
  const save = (event: Event): void => {
    event.preventDefault();
    void attempt(async () => {
      const mount_paths = text.split("\n").map((path) => path.trim()).filter(Boolean);
      const body = { mount_paths };
      const { restarted } = await call<{ restarted: boolean }>("PUT", one(id, "/mounts"), { body });
      say(restarted ? T.containers.restarted : T.containers.mountsSaved);
      setTyped(undefined);
      mounts.reload();
      done();
    });
  };
  return (
    <section class="part">
      <header>
        <div>
          <h2>{T.containers.mounts}</h2>
          <p class="about">{T.containers.mountsAbout}</p>
        </div>
      </header>
      <form class="narrow" onSubmit={save}>
        <Field label={T.containers.mounts} hint={T.containers.mountsHint}>
          <textarea value={text} onInput={(event) => setTyped(event.currentTarget.value)} />
        </Field>
        <Button type="submit" disabled={typed === undefined || typed === mounts.data}>
          {T.common.save}
        </Button>
      </form>
    </section>
  );
}

const LINES_MAX = 5000;
/** The code of a WebSocket that has ended because there is no more. */
const NORMAL = 1000;
/** Colors, and what else a terminal is told. */
const ESCAPES = /\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\))/g;

/** What a container prints; of one that has stopped, what is kept of it. */
function Logs({ row }: { row: Container }) {
  const [lines, setLines] = useState<string[]>([]);
  const [ended, setEnded] = useState<CloseEvent>();
  const [turn, setTurn] = useState(0);
  const isOn = row.status === "running";
  // A run has its output for itself. When it ends, what is shown of it stays.
  const runs = useRef({ count: 0, isOn });
  if (isOn && !runs.current.isOn) runs.current.count += 1;
  runs.current.isOn = isOn;
  const box = useRef<HTMLPreElement>(null);
  const follows = useRef(true);
  useEffect(() => {
    let came: string[] = [];
    let drawing = 0;
    setLines([]);
    setEnded(undefined);
    const socket = new WebSocket(socketAddress(one(row.id, "/logs"), { tail: 500 }));
    socket.onmessage = ({ data }: MessageEvent<string>) => {
      came.push(data.replace(ESCAPES, ""));
      drawing ||= window.setTimeout(() => {
        const more = came;
        came = [];
        drawing = 0;
        setLines((old) => [...old, ...more].slice(-LINES_MAX));
      }, 100);
    };
    socket.onclose = setEnded;
    return () => {
      clearTimeout(drawing);
      socket.onclose = null;
      socket.close();
    };
  }, [row.id, runs.current.count, turn]);
  useEffect(() => {
    if (follows.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [lines]);
  const scrolled = (): void => {
    const { scrollTop, scrollHeight, clientHeight } = box.current as HTMLElement;
    follows.current = scrollTop + clientHeight > scrollHeight - 20;
  };
  return (
    <>
      <pre
        class="log"
        ref={box}
        tabIndex={0}
        role="log"
        aria-label={T.containers.logs}
        onScroll={scrolled}
      >
        {lines.length ? lines.join("\n") : T.containers.noLogs}
      </pre>
      {ended &&
        (isOn || ended.code !== NORMAL ? (
          <Ended text={T.containers.closed(ended.reason)} again={() => setTurn(turn + 1)} />
        ) : (
          <p class="hint" role="status">
            {T.containers.kept}
          </p>
        ))}
    </>
  );
}

function Ended({ text, again }: { text: string; again: () => void }) {
  return (
    <p class="problem warn" role="status">
      <span>{text}</span>
      <Button onClick={again}>{T.containers.reconnect}</Button>
    </p>
  );
}

const loadShell = part(() => import("./terminal"));

function Terminal({ row }: { row: Container }) {
  const shell = useLoad("shell", loadShell);
  const [turn, setTurn] = useState(0);
  const [ended, setEnded] = useState<string>();
  if (row.status !== "running" && ended === undefined)
    return (
      <Empty
        icon="terminal"
        title={T.containers.notRunning}
        hint={T.containers.notRunningHint}
      />
    );
  return (
    <>
      <Wait on={shell}>
        {({ Shell }) => (
          <Shell
            key={turn}
            address={socketAddress(one(row.id, "/terminal"))}
            closed={(reason) => setEnded(T.containers.closed(reason))}
          />
        )}
      </Wait>
      {ended !== undefined && (
        <Ended
          text={ended}
          again={() => {
            setEnded(undefined);
            setTurn(turn + 1);
          }}
        />
      )}
    </>
  );
}
