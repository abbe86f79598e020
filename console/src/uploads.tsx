// Uploads: a queue outside of all pages, and the panel that shows it.
//
// A large file is sent to an upload that the server keeps, so that it goes on where it was after
// the connection was lost; a small one begins again.
import { address, authorization, call, Failure, message, reached, request, session } from "./api";
import { bytes, duration, lastSegment } from "./format";
import { Store, useStore } from "./store";
import { T } from "./texts";
import { Button, Icon } from "./ui";
import { useState } from "preact/hooks";

const AT_ONCE = 3;
/** Files above this are sent to an upload that the server keeps. */
const KEPT_BYTES_MIN = 16 * 1024 * 1024;
/** Of what is sent at once, at least; a lost connection costs at most a part. */
const PART_BYTES_MIN = 16 * 1024 * 1024;
/** Of one upload; the server takes 10,000. */
const PARTS_MAX = 9000;
const AGAIN_MS_MAX = 10_000;
/** Without progress the connection is lost. On a slow one, progress is in steps of its buffers. */
const STALL_MS = 120_000;
/** When all is sent, the server may have to put it together, at least so fast. */
const ANSWER_MS = 600_000;
const JOINED_BYTES_PER_MS = 20_000;
const SHOWN_MAX = 200;

/** The other names that are tried for a file of which both are kept. */
const NAMES_MAX = 100;

type State = "waiting" | "running" | "interrupted" | "done" | "failed" | "exists" | "cancelled";

/** What becomes of a file whose name is taken. */
type Choice = "ask" | "replace" | "both" | "skip";

interface Upload {
  id: number;
  space: string;
  path: string;
  file: File;
  state: State;
  sent: number;
  /** Bytes in a second, smoothed. */
  rate: number;
  /** When it was measured last, and what was sent then: a part may take less than a measurement. */
  measured: { at: number; sent: number } | null;
  problem: string;
  choice: Choice;
  overwrite: boolean;
  /** How many names were taken. */
  taken: number;
  /** The upload that the server keeps. */
  kept: string;
  /** Whether a large one is sent at once. */
  isWhole: boolean;
  /** Whether all of it was sent once to this name, and no answer came. */
  unanswered: boolean;
  ending: AbortController;
}

export const uploads = new Store<Upload[]>([]);
/** Counts what has been uploaded, for lists that show it. */
export const uploaded = new Store(0);
let lastId = 0;
let drawing = 0;

/** Show the present state, at most once for each frame. */
function draw(): void {
  drawing ||= window.setTimeout(() => {
    drawing = 0;
    uploads.set(uploads.value);
  }, 100);
}

export function add(space: string, files: { path: string; file: File }[]): void {
  const made = files.map(({ path, file }) => ({
    id: ++lastId,
    space,
    path,
    file,
    state: "waiting" as State,
    sent: 0,
    rate: 0,
    measured: null,
    problem: "",
    choice: "ask" as Choice,
    overwrite: false,
    taken: 0,
    kept: "",
    isWhole: false,
    unanswered: false,
    ending: new AbortController(),
  }));
  uploads.set([...uploads.value, ...made]);
  fill();
}

const isActive = ({ state }: Upload): boolean => state === "running" || state === "interrupted";
const isOpen = (each: Upload): boolean => each.state === "waiting" || isActive(each);

function fill(): void {
  let free = AT_ONCE - uploads.value.filter(isActive).length;
  for (const each of uploads.value) {
    if (free <= 0) break;
    if (each.state !== "waiting") continue;
    free -= 1;
    void run(each);
  }
  draw();
}

async function run(upload: Upload): Promise<void> {
  upload.state = "running";
  let wait = 500;
  for (;;) {
    const before = upload.sent;
    try {
      await (upload.file.size > KEPT_BYTES_MIN ? sendKept(upload) : sendWhole(upload));
      upload.state = "done";
      upload.sent = upload.file.size;
      uploaded.set(uploaded.value + 1);
      break;
    } catch (error) {
      if (upload.ending.signal.aborted) {
        upload.state = "cancelled";
        forget(upload);
        break;
      }
      if (!(error instanceof Failure) || !error.isAway) {
        const isTaken = error instanceof Failure && error.status === 409 && !upload.overwrite;
        if (isTaken && settle(upload)) continue;
        upload.state = isTaken && upload.taken < NAMES_MAX ? "exists" : "failed";
        upload.problem = message(error);
        break;
      }
      upload.state = "interrupted";
      upload.measured = null;
      upload.unanswered ||= upload.sent === upload.file.size;
      draw();
      wait = upload.sent > before ? 500 : Math.min(wait * 2, AGAIN_MS_MAX);
      await pause(wait, upload.ending.signal);
      upload.state = "running";
    }
  }
  Object.assign(upload, { rate: 0, measured: null });
  fill();
}

/** Do what was chosen for a name that is taken; false: it is not sent again. */
function settle(upload: Upload): boolean {
  const { choice } = upload;
  if (choice === "skip") drop([upload]);
  if (choice === "both" && upload.taken < NAMES_MAX) {
    upload.taken += 1;
    const [, before = "", ending = ""] = /^(.*?[^/])(\.[^./]*)?$/s.exec(upload.path) ?? [];
    const name = upload.taken > 1 ? before.replace(/ \(\d+\)$/, "") : before;
    upload.path = `${name} (${upload.taken + 1})${ending}`;
  } else if (choice !== "replace") return false;
  upload.overwrite = choice === "replace";
  forget(upload); // it began with the other
  upload.unanswered = false;
  upload.sent = 0;
  return true;
}

/** For these, and all that are still to be sent. */
function choose(list: Upload[], choice: Choice): void {
  for (const each of list) {
    each.choice = choice;
    if (each.state !== "exists") continue;
    if (choice === "skip") drop([each]);
    else if (settle(each)) retry(each);
  }
  draw();
}

/** Have the server delete the parts that it keeps of an upload. */
function forget(upload: Upload): void {
  if (upload.kept) void call("DELETE", keptPath(upload)).catch(() => undefined);
  upload.kept = "";
}

function drop(list: Upload[]): void {
  list.forEach(forget);
  uploads.set(uploads.value.filter((each) => !list.includes(each)));
}

const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      done();
    });
  });

async function sendWhole(upload: Upload): Promise<void> {
  const query = { namespace: upload.space, name: upload.path, overwrite: upload.overwrite };
  try {
    await send(upload, "POST", address("/storage/upload", query), upload.file, 0);
  } catch (error) {
    // The file that is in the way may be this one.
    const isTaken = error instanceof Failure && error.status === 409;
    if (!isTaken || !upload.unanswered || !(await isThere(upload))) throw error;
    if (!(await isSame(upload))) throw error;
  }
}

const keptPath = ({ space, kept }: Upload): string =>
  `/storage/namespaces/${encodeURIComponent(space)}/uploads${kept && `/${encodeURIComponent(kept)}`}`;

interface Kept {
  id: string;
  offset: number;
  complete: boolean;
}

/** How far the upload has come; null if there is none. */
async function progressOf(upload: Upload): Promise<Kept | null> {
  try {
    return await call<Kept>("GET", keptPath(upload), { signal: upload.ending.signal });
  } catch (error) {
    if (error instanceof Failure && error.status === 404) return null;
    throw error;
  }
}

async function sendKept(upload: Upload): Promise<void> {
  const { path, file, overwrite } = upload;
  const { signal } = upload.ending;
  let kept: Kept | null = null;
  if (upload.kept) {
    kept = await progressOf(upload);
    // The answer to the last part was lost, or it is too old.
    if (!kept && upload.sent === file.size && (await isThere(upload))) return;
  }
  if (!kept) {
    upload.kept = "";
    const body = { path, size: file.size, overwrite };
    try {
      kept = await call<Kept>("POST", keptPath(upload), { body, signal });
    } catch (error) {
      // While it is put together it needs room twice.
      if (!(error instanceof Failure) || ![413, 507].includes(error.status)) throw error;
      upload.isWhole = true;
      return sendWhole(upload);
    }
    upload.isWhole = false;
    upload.kept = kept.id;
  }
  const length = Math.max(PART_BYTES_MIN, Math.ceil(file.size / PARTS_MAX));
  while (!kept.complete) {
    const offset: number = kept.offset;
    upload.sent = offset;
    const target = address(keptPath(upload), { offset });
    const part = file.slice(offset, offset + length);
    try {
      kept = JSON.parse(await send(upload, "PUT", target, part, offset)) as Kept;
    } catch (error) {
      if (!(error instanceof Failure) || error.status !== 409) throw error;
      // What was sent before the connection was lost may have come after all.
      const now = await progressOf(upload);
      if (!now && (await isThere(upload))) break;
      if (!now || now.offset === offset) throw error;
      kept = now;
    }
  }
  upload.kept = "";
}

async function isThere({ space, path, file, ending }: Upload): Promise<boolean> {
  const query = { namespace: space, name: path };
  try {
    const { headers } = await request("HEAD", "/storage/download", { query, signal: ending.signal });
    return headers.get("Content-Length") === String(file.size);
  } catch (error) {
    if (error instanceof Failure && error.status === 404) return false;
    throw error;
  }
}

/** Whether the file there has the very bytes. */
async function isSame({ space, path, file, ending }: Upload): Promise<boolean> {
  const query = { namespace: space, name: path };
  const { body } = await request("GET", "/storage/download", { query, signal: ending.signal });
  if (!body) return !file.size;
  const reader = body.getReader();
  let at = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return at === file.size;
      const own = new Uint8Array(await file.slice(at, at + value.length).arrayBuffer());
      if (value.some((byte, index) => byte !== own[index])) return false;
      at += value.length;
    }
  } catch (error) {
    if (ending.signal.aborted) throw error;
    throw await lost(file);
  } finally {
    void reader.cancel().catch(() => undefined);
  }
}

/** Why it was not sent: a browser reports a file that it cannot read as a lost connection. */
async function lost(data: Blob): Promise<Failure> {
  try {
    await data.slice(0, 1).arrayBuffer();
  } catch {
    return new Failure(-1, T.uploads.unreadable);
  }
  return new Failure(0, T.failures.away);
}

/** Send bytes with their progress, which fetch does not report. */
function send(
  upload: Upload,
  method: string,
  target: string,
  data: Blob,
  offset: number,
): Promise<string> {
  return new Promise((done, refuse) => {
    // It may have been cancelled while it waited to be sent again.
    upload.ending.signal.throwIfAborted();
    const sending = new XMLHttpRequest();
    let [timer, isLate] = [0, false];
    upload.measured ??= { at: performance.now(), sent: offset };
    const limit = (ms: number): void => {
      clearTimeout(timer);
      timer = window.setTimeout(() => {
        isLate = true;
        sending.abort();
      }, ms);
    };
    const answer = ANSWER_MS + upload.file.size / JOINED_BYTES_PER_MS;
    sending.open(method, target);
    for (const [name, value] of Object.entries(authorization()))
      sending.setRequestHeader(name, value);
    sending.setRequestHeader("Content-Type", "application/octet-stream");
    sending.upload.onprogress = ({ loaded }) => {
      limit(STALL_MS);
      const [at, sent] = [performance.now(), offset + loaded];
      const last = upload.measured ?? { at, sent };
      upload.sent = sent;
      if (at - last.at > 250) {
        const rate = (Math.max(0, sent - last.sent) / (at - last.at)) * 1000;
        upload.rate = upload.rate ? upload.rate * 0.7 + rate * 0.3 : rate;
        upload.measured = { at, sent };
      }
      draw();
    };
    sending.upload.onload = () => limit(answer);
    sending.onloadend = () => clearTimeout(timer);
    sending.onload = () => {
      reached.set(true);
      if (sending.status < 300) done(sending.responseText);
      else refuse(new Failure(sending.status, said(sending)));
    };
    sending.onerror = () => void lost(data).then(refuse);
    sending.onabort = () =>
      refuse(isLate ? new Failure(0, T.failures.away) : new Failure(-1, T.uploads.cancelled));
    upload.ending.signal.addEventListener("abort", () => sending.abort());
    limit(data.size ? STALL_MS : answer);
    sending.send(data);
  });
}

function said(request: XMLHttpRequest): string {
  try {
    return String((JSON.parse(request.responseText) as { error: string }).error);
  } catch {
    return T.failures.status(request.status);
  }
}

function cancel(upload: Upload): void {
  upload.ending.abort();
  if (!isActive(upload)) upload.state = "cancelled";
  draw();
}

function retry(upload: Upload): void {
  Object.assign(upload, { state: "waiting", problem: "", sent: 0 });
  upload.ending = new AbortController();
  fill();
}

let owner = session.value?.user_id;
session.listen(() => {
  const now = session.value?.user_id;
  // Nobody sees, or sends, what another user of this tab has begun.
  if (now && owner && now !== owner) {
    uploads.value.forEach(cancel);
    uploads.set([]);
  }
  owner = now ?? owner;
});

addEventListener("beforeunload", (event) => {
  if (uploads.value.some(isOpen)) event.preventDefault();
});

// --- what was dropped ---------------------------------------------------------------------

// Where nothing takes a file the browser would open it, and leave the page with its uploads.
for (const kind of ["dragover", "drop"] as const)
  addEventListener(kind, (event) => {
    if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "none";
  });

/** The files of a drop, those in folders with their paths; and the paths that cannot be read. */
export async function dropped(
  data: DataTransfer,
): Promise<{ found: { path: string; file: File }[]; unread: string[] }> {
  const found: { path: string; file: File }[] = [];
  const unread: string[] = [];
  // They must be taken before the first wait.
  const entries = [...data.items].map((item) => item.webkitGetAsEntry());
  const plain = [...data.files];
  const walk = async (entry: FileSystemEntry): Promise<void> => {
    const path = entry.fullPath.replace(/^\//, "");
    try {
      await read(entry, path);
    } catch {
      unread.push(path);
    }
  };
  const read = async (entry: FileSystemEntry, path: string): Promise<void> => {
    if (entry.isFile) {
      const file = await new Promise<File>((done, refuse) =>
        (entry as FileSystemFileEntry).file(done, refuse),
      );
      found.push({ path, file });
      return;
    }
    const reader = (entry as FileSystemDirectoryEntry).createReader();
    for (;;) {
      const some = await new Promise<FileSystemEntry[]>((done, refuse) =>
        reader.readEntries(done, refuse),
      );
      if (!some.length) return;
      for (const each of some) await walk(each);
    }
  };
  for (const entry of entries) if (entry) await walk(entry);
  // Of some sources there are only files.
  if (!entries.some(Boolean)) found.push(...plain.map((file) => ({ path: file.name, file })));
  return { found, unread };
}

// --- the panel ----------------------------------------------------------------------------

const CHOICES = ["replace", "both", "skip"] as const;
const isUnsettled = (each: Upload): boolean => each.state === "exists" || isOpen(each);

export function Panel() {
  const list = useStore(uploads);
  const [folded, setFolded] = useState(false);
  if (!list.length) return null;
  const done = list.filter(({ state }) => state === "done").length;
  const open = list.filter(isOpen);
  const taken = list.filter(({ state }) => state === "exists").length;
  const total = list.reduce((sum, { file }) => sum + file.size, 0);
  const sent = list.reduce((sum, each) => sum + each.sent, 0);
  const rate = open.reduce((sum, each) => sum + each.rate, 0);
  const left = open.reduce((sum, { file, sent }) => sum + file.size - sent, 0);
  const order = { exists: 0, failed: 0, interrupted: 1, running: 1, waiting: 2 } as const;
  const rank = ({ state }: Upload): number => (state in order ? order[state as "exists"] : 3);
  const shown = [...list].sort((a, b) => rank(a) - rank(b)).slice(0, SHOWN_MAX);
  return (
    <section class="uploads" aria-label={T.uploads.title}>
      <header>
        <h2>{T.uploads.title}</h2>
        <span class="count">{T.uploads.summary(done, list.length)}</span>
        {rate > 0 && <span class="rate">{T.uploads.rate(bytes(rate), duration(left / rate))}</span>}
        {open.length > 1 && (
          <Button look="quiet" onClick={() => open.forEach(cancel)}>
            {T.uploads.cancelAll}
          </Button>
        )}
        <Button
          icon={folded ? "up" : "down"}
          look="quiet"
          label={folded ? T.uploads.expand : T.uploads.collapse}
          onClick={() => setFolded(!folded)}
        />
        {!open.length && (
          <Button
            icon="close"
            look="quiet"
            label={T.uploads.clear}
            onClick={() => drop(list)}
          />
        )}
      </header>
      <progress max={total || 1} value={total ? sent : done} aria-label={T.uploads.title} />
      {taken > 1 && (
        <div class="choose" role="group" aria-label={T.uploads.taken(taken)}>
          <span>{T.uploads.taken(taken)}</span>
          {CHOICES.map((each) => (
            <Button key={each} onClick={() => choose(list.filter(isUnsettled), each)}>
              {T.uploads.all[each]}
            </Button>
          ))}
        </div>
      )}
      {!folded && (
        <ul>
          {shown.map((each) => (
            <Row key={each.id} upload={each} />
          ))}
        </ul>
      )}
    </section>
  );
}

function Row({ upload }: { upload: Upload }) {
  const { state, file, sent, path, rate, problem, isWhole } = upload;
  const name = lastSegment(path);
  const what = {
    waiting: T.uploads.waiting,
    running: file.size && sent >= file.size ? T.uploads.finishing : rate ? `${bytes(sent)} / ${bytes(file.size)} · ${bytes(rate)}/s` : bytes(file.size),
    interrupted: isWhole ? T.uploads.again : T.uploads.interrupted,
    done: bytes(file.size),
    failed: problem,
    exists: T.uploads.exists,
    cancelled: T.uploads.cancelled,
  }[state];
  return (
    <li class={state} data-state={state}>
      <Icon name={state === "done" ? "check" : state === "failed" ? "warn" : "file"} />
      <div>
        <span class="name" title={path}>
          {name}
        </span>
        <small>{what}</small>
        {isWhole && state === "running" && <small>{T.uploads.whole}</small>}
        {isActive(upload) && (
          <progress max={file.size || 1} value={sent} aria-label={name} />
        )}
      </div>
      {state === "exists" && (
        <div class="choose">
          {CHOICES.map((each) => (
            <Button
              key={each}
              label={`${T.uploads.one[each]}: ${name}`}
              onClick={() => choose([upload], each)}
            >
              {T.uploads.one[each]}
            </Button>
          ))}
        </div>
      )}
      {(state === "failed" || state === "cancelled") && (
        <Button onClick={() => retry(upload)}>{T.uploads.retry}</Button>
      )}
      {isOpen(upload) && (
        <Button
          icon="close"
          look="quiet"
          label={`${T.uploads.cancel}: ${name}`}
          onClick={() => cancel(upload)}
        />
      )}
    </li>
  );
}
