// The REST API, the only thing that the console talks to.
//
// The token of the session is in memory and in sessionStorage: another origin cannot read it, and
// it ends with the last tab. No cookie is set or sent, so another site can make this browser change
// nothing. Users' files are served from this origin, but in a sandbox without one.
import { useCallback, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Store } from "./store";
import { T } from "./texts";

export interface Session {
  token: string;
  user_id: string;
  username: string;
  display_name: string;
  is_admin: boolean;
}

/** A request that failed: in the server's words, or ours if there was no answer. */
export class Failure extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
  /** The server may answer soon. */
  get isAway(): boolean {
    return [0, 502, 503, 504].includes(this.status);
  }
}

const KEY = "gfs-session";

function stored(): Session | null {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? "null") as Session | null;
  } catch {
    return null;
  }
}

export const session = new Store<Session | null>(stored());
/** Whether the last request was answered. */
export const reached = new Store(true);
/** Why what is shown is from before, for each part of it that cannot be read again. */
export const outdated = new Store<readonly Failure[]>([]);
/** Why the login page is shown, if a session has ended. */
export const farewell = new Store("");

export function begin(made: Session): void {
  sessionStorage.setItem(KEY, JSON.stringify(made));
  farewell.set("");
  session.set(made);
}

export function end(why = ""): void {
  sessionStorage.removeItem(KEY);
  farewell.set(why);
  session.set(null);
}

// A new tab asks the others for their session. Only pages of this origin hear that; users' files,
// which are in a sandbox, have none.
const tabs = new BroadcastChannel(KEY);
tabs.onmessage = ({ data }: MessageEvent<Session | "who">) => {
  if (data === "who") {
    if (session.value) tabs.postMessage(session.value);
  } else if (!session.value && !farewell.value && !leaving) begin(data);
};
/** Whether the user has logged out here: what comes late is not taken. */
let leaving = false;
if (!session.value) tabs.postMessage("who");

export function leave(): void {
  leaving = true;
  end();
}

type Query = Record<string, string | number | boolean | undefined>;

export interface Options {
  query?: Query;
  body?: unknown;
  raw?: Blob | ArrayBuffer;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  /** It is sent even if the page is closed meanwhile. */
  keepalive?: boolean;
  /** How long to wait for the answer, if not LOOK_MS or CHANGE_MS. */
  ms?: number;
  /** What to say if none has come by then. */
  late?: string;
}

export function address(path: string, query: Query = {}): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query))
    if (value !== undefined && value !== "") search.set(name, String(value));
  const text = search.toString();
  return text ? `${path}?${text}` : path;
}

/** Each segment of a path, encoded for a URL. */
export function encoded(path: string): string {
  return path.split("/").map(encodeURIComponent).join("/");
}

export function authorization(): Record<string, string> {
  return session.value ? { Authorization: `Bearer ${session.value.token}` } : {};
}

const isLook = (method: string): boolean => method === "GET" || method === "HEAD";

async function send(
  method: string,
  path: string,
  { query, body, raw, headers, signal, keepalive }: Options,
): Promise<Response> {
  const token = session.value?.token;
  let answer: Response;
  try {
    answer = await fetch(address(path, query), {
      method,
      headers: {
        ...authorization(),
        ...(body !== undefined ? { "Content-Type": "application/json" } : {}),
        ...headers,
      },
      body: body !== undefined ? JSON.stringify(body) : (raw ?? null),
      credentials: "omit",
      signal: signal ?? null,
      keepalive: keepalive ?? false,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    reached.set(false);
    throw new Failure(0, isLook(method) ? T.failures.away : T.failures.unsent);
  }
  const failure = answer.ok ? null : await failureOf(answer);
  if (!reached.value && !failure?.isAway) reached.set(true);
  if (!failure) return answer;
  if (answer.status === 401 && token && session.value?.token === token) end(T.login.ended);
  throw failure;
}

export async function failureOf(answer: Response): Promise<Failure> {
  let said = "";
  try {
    said = String(((await answer.json()) as { error?: unknown }).error ?? "");
  } catch {
    // A proxy has answered.
  }
  return new Failure(answer.status, said || T.failures.status(answer.status));
}

/** A server that has stopped answers nothing, and refuses nothing. */
export const LOOK_MS = 30_000;
/** What is carried out may have to read many files. */
const CHANGE_MS = 150_000;

/** What `ask` brings, if that is in time. Throws Failure. */
async function inTime<R>(
  method: string,
  options: Options,
  ask: (timed: Options) => Promise<R>,
): Promise<R> {
  const { signal, ms = isLook(method) ? LOOK_MS : CHANGE_MS } = options;
  const late = AbortSignal.timeout(ms);
  try {
    return await ask({ ...options, signal: signal ? AbortSignal.any([signal, late]) : late });
  } catch (error) {
    if (!late.aborted || signal?.aborted) throw error;
    // What takes long to carry out does not say that the server is away.
    if (isLook(method)) reached.set(false);
    throw new Failure(0, options.late ?? (isLook(method) ? T.failures.away : T.failures.late));
  }
}

/**
 * The answer to a request. Throws Failure. What is read with it takes the time that it takes,
 * unless `ms` says how long.
 */
export const request = (method: string, path: string, options: Options = {}): Promise<Response> =>
  isLook(method) && !options.ms
    ? send(method, path, options)
    : inTime(method, options, (timed) => send(method, path, timed));

/** The JSON that answers a request. Throws Failure. */
export const call = <R>(method: string, path: string, options: Options = {}): Promise<R> =>
  inTime(method, options, async (timed) => (await send(method, path, timed)).json() as Promise<R>);

export const get = <R>(path: string, query: Query = {}, signal?: AbortSignal): Promise<R> =>
  call<R>("GET", path, signal ? { query, signal } : { query });

export function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** An address for a WebSocket, which cannot have headers: with the token in its query. */
export function socketAddress(path: string, query: Query = {}): string {
  const url = new URL(address(path, { ...query, token: session.value?.token }), location.href);
  url.protocol = url.protocol.replace("http", "ws");
  return url.href;
}

/** Loads a part of the page that is rarely needed, for useLoad. Throws an Error for people. */
export const part =
  <R>(load: () => Promise<R>) =>
  async (): Promise<R> => {
    try {
      return await load();
    } catch {
      // The files of an older console are gone, as well.
      throw new Error(T.failures.part);
    }
  };

export interface Loaded<R> {
  data: R | undefined;
  error: Failure | null;
  reload: () => void;
  change: (data: R) => void;
}

const AGAIN_MS = 2000;

/**
 * What `load` returns, loaded again when `key` changes, every `seconds` while the page is
 * visible, at once when it becomes so, and soon after a failure to reach the server; the last data
 * stays meanwhile.
 */
export function useLoad<R>(
  key: string,
  load: (signal: AbortSignal) => Promise<R>,
  seconds = 0,
): Loaded<R> {
  const [state, setState] = useState<{ key: string; data?: R; error: Failure | null }>({
    key,
    error: null,
  });
  const [turn, setTurn] = useState(0);
  const loader = useRef(load);
  loader.current = load;
  // Before anything is painted: the answer is on its way meanwhile.
  useLayoutEffect(() => {
    const ending = new AbortController();
    let timer = 0;
    let isRead = false;
    const run = async (): Promise<void> => {
      clearTimeout(timer);
      timer = 0;
      let wait = seconds * 1000;
      if (!document.hidden || !seconds || !isRead)
        try {
          const data = await loader.current(ending.signal);
          isRead = true;
          if (!ending.signal.aborted) setState({ key, data, error: null });
        } catch (error) {
          if (ending.signal.aborted) return;
          const failure = error instanceof Failure ? error : new Failure(-1, message(error));
          setState((last) => ({ ...(last.key === key ? last : {}), key, error: failure }));
          if (failure.isAway) wait = AGAIN_MS;
        }
      if (wait && !ending.signal.aborted) timer = window.setTimeout(run, wait);
    };
    // While it is read there is no timer.
    const shown = (): void => {
      if (timer && !document.hidden) void run();
    };
    document.addEventListener("visibilitychange", shown);
    void run();
    return () => {
      ending.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [key, turn, seconds]);
  const reload = useCallback(() => setTurn((last) => last + 1), []);
  const change = useCallback((data: R) => setState({ key, data, error: null }), [key]);
  const mine = state.key === key;
  return { data: mine ? state.data : undefined, error: mine ? state.error : null, reload, change };
}

export interface Page<R> {
  rows: R[];
  /** The cursor of the page after this one. */
  next: string | null;
}

const PAGE = 200;
const PAGE_MAX = 1000;

/**
 * A list that the server gives in pages: as many of its first rows as are wanted, loaded like those
 * of `useLoad`. `more` wants more of them.
 */
export function usePages<P extends Page<unknown>>(
  key: string,
  load: (limit: number, cursor: string | undefined, signal: AbortSignal) => Promise<P>,
  seconds = 0,
  most = PAGE_MAX,
): Loaded<P> & { more: () => void } {
  const wanted = useRef(PAGE);
  const read = async (signal: AbortSignal): Promise<P> => {
    const rows: unknown[] = [];
    for (let cursor: string | undefined; ; ) {
      const page: P = await load(Math.min(most, wanted.current - rows.length), cursor, signal);
      rows.push(...page.rows);
      if (!page.next || rows.length >= wanted.current) return { ...page, rows };
      cursor = page.next;
    }
  };
  const list = useLoad(key, read, seconds);
  const more = (): void => {
    wanted.current += PAGE;
    list.reload();
  };
  return { ...list, more };
}
