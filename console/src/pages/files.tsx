// One folder of a storage namespace: its entries, what can be done with them, and uploads to it.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { address, call, encoded, get, message, session, Failure, type Loaded } from "../api";
import { bytes, fullTime, lastSegment, time } from "../format";
import { go, link, place } from "../router";
import { useStore } from "../store";
import { T } from "../texts";
import {
  ask,
  Button,
  Dialog,
  Empty,
  Field,
  Head,
  Icon,
  Menu,
  say,
  Trouble,
  type Item,
} from "../ui";
import { add, dropped, uploaded } from "../uploads";
import { Locate } from "./locate";
import { canPreview, Preview } from "./preview";
import { Share } from "./shares";
import { owns, type Space } from "./spaces";

export interface Entry {
  kind: "folder" | "file";
  name: string;
  path: string;
  size: number;
  created_at: number;
  modified_at: number;
}

interface Listing {
  folder: string;
  entries: Entry[];
  next: string | null;
}

/** Of entries; the first one soon, and the others with few requests. */
const PAGE = 500;
const PAGE_MAX = 1000;
/** The same where the server reads the whole folder for each page. */
const PAGE_MAX_WHOLE = 10_000;
const ROW = 41;
/** Rows above and below what is seen; others are drawn when fewer than NEAR of them are left. */
const AROUND = 20;
const NEAR = 8;

export const inSpace = (space: string, rest: string): string =>
  `/storage/namespaces/${encodeURIComponent(space)}/${rest}`;

export const join = (folder: string, name: string): string => (folder ? `${folder}/${name}` : name);

/**
 * The address `at` of a file, for what sends no header: with a ticket for this file alone, since
 * addresses are kept in histories and logs.
 */
export async function ticketed(
  at: string,
  space: string,
  path: string,
  snapshot = "",
): Promise<string> {
  const body = { path, snapshot };
  const { ticket } = await call<{ ticket: string }>("POST", inSpace(space, "tickets"), { body });
  return address(at, { ticket });
}

/** Let the browser download: it streams to the disk, which a script cannot. */
export async function download(space: string, path: string, snapshot = ""): Promise<void> {
  const at = snapshot
    ? inSpace(space, `snapshots/${encodeURIComponent(snapshot)}/files/${encoded(path)}`)
    : `/storage/download/${encodeURIComponent(space)}/${encoded(path)}`;
  const anchor = document.createElement("a");
  anchor.download = lastSegment(path);
  try {
    anchor.href = await ticketed(at, space, path, snapshot);
    anchor.click();
  } catch (failure) {
    say(message(failure), true);
  }
}

interface Found {
  at: string;
  key: string;
  list: Entry[];
  next: string | null;
}

/** The order in which the server gives a folder of any size. */
const OWN_ORDER = { sort: "name", order: "asc", match: "" };

/**
 * The entries of a folder, page after page. Those that are there stay until others are: when they
 * are read again, sorted or filtered. Of a folder that is too large for what is `asked` they come
 * in its own order, and `isLarge` is true.
 */
export function useEntries(base: string, folder: string, asked: typeof OWN_ORDER) {
  const kept = useRef<Found>();
  /** The list whose next page is being read. */
  const reading = useRef<Found>();
  /** The folder that was too large. */
  const [large, setLarge] = useState("");
  const again = useRef((): void => undefined);
  const [, draw] = useState({});
  const [problem, setProblem] = useState<{ key: string; error: Failure }>();
  const at = [base, folder].join("\0");
  const isOwn = asked.sort === "name" && asked.order === "asc" && !asked.match;
  const isLarge = !isOwn && large === at;
  const by = isLarge ? OWN_ORDER : asked;
  const key = [at, by.sort, by.order, by.match].join("\0");
  const most = isOwn || isLarge ? PAGE_MAX : PAGE_MAX_WHOLE;
  const load = (after: string | null, limit: number, signal?: AbortSignal): Promise<Listing> =>
    get<Listing>(base, { ...by, folder, limit, after: after ?? undefined }, signal);
  const show = (found: Found): void => {
    kept.current = found;
    draw({});
  };
  useLayoutEffect(() => {
    const ending = new AbortController();
    let [timer, isBusy, isDue] = [0, false, false];
    const read = async (): Promise<void> => {
      // As many as there are: somebody looks at the last of them, and may have selected all.
      const wanted = (): number => (kept.current?.key === key ? kept.current.list.length : 0);
      const list: Entry[] = [];
      let next: string | null = null;
      do {
        const limit = wanted() > PAGE ? most : PAGE;
        const page: Listing = await load(next, limit, ending.signal);
        list.push(...page.entries);
        next = page.next;
      } while (next && list.length < wanted());
      if (!ending.signal.aborted) show({ at, key, list, next });
    };
    const run = async (): Promise<void> => {
      clearTimeout(timer);
      // What is read may be from before the change. It is not ended: there may always be another.
      if (isBusy) {
        isDue = true;
        return;
      }
      [isBusy, isDue] = [true, false];
      try {
        await read();
        setProblem(undefined);
      } catch (failure) {
        if (ending.signal.aborted) return;
        const error = failure instanceof Failure ? failure : new Failure(-1, message(failure));
        // What is wrong with the folder itself is refused in its own order, too.
        if (error.status === 400 && !isOwn && !isLarge) return setLarge(at);
        setProblem({ key, error });
        if (error.isAway) timer = window.setTimeout(run, 2000);
      }
      isBusy = false;
      if (isDue && !ending.signal.aborted) void run();
    };
    again.current = () => void run();
    void run();
    return () => {
      ending.abort();
      clearTimeout(timer);
    };
  }, [key]);
  const found = kept.current;
  useLayoutEffect(() => {
    // Others, or in another order. It needs a layout, for which no request waits: one that is sent
    // after it, but before the first picture, decides what may be done with the list.
    requestAnimationFrame(() => document.getElementById("content")?.scrollTo(0, 0));
  }, [found?.key]);
  const more = async (): Promise<void> => {
    const before = kept.current;
    if (!before?.next || before.key !== key || reading.current === before) return;
    reading.current = before;
    try {
      const { entries, next } = await load(before.next, most);
      // After those of another list some would be missing.
      if (kept.current === before) show({ ...before, list: [...before.list, ...entries], next });
    } catch (failure) {
      say(message(failure), true);
    }
    if (reading.current === before) reading.current = undefined;
  };
  const isOld = found?.key !== key;
  const isShown = found?.at === at && (!isOld || found.list.length > 0);
  return {
    data: isShown ? found.list : undefined,
    isOld,
    isLarge,
    by,
    hasMore: Boolean(found?.next),
    error: problem?.key === key ? problem.error : null,
    more,
    reload: () => again.current(),
  };
}

export function Files({ spaces }: { spaces: Pick<Loaded<Space[]>, "data" | "error"> }) {
  const { path, query } = useStore(place);
  const space = path[1] ?? "";
  const folder = path.slice(2).join("/");
  const sort = query.get("sort") ?? "name";
  const order = query.get("order") ?? "asc";
  const user = useStore(session);
  const [match, setMatch] = useState("");
  const [typed, setTyped] = useState("");
  const [selected, setSelected] = useState<Selection>(new Map());
  const [over, setOver] = useState(false);
  const base = inSpace(space, "entries");
  const entries = useEntries(base, folder, { sort, order, match });
  const { data: list, isOld, hasMore, more, reload } = entries;
  // Where one may do what is above the list, and would move it.
  const isKnown = Boolean(spaces.data || spaces.error);
  const count = useStore(uploaded);
  const filesInput = useRef<HTMLInputElement>(null);
  const folderInput = useRef<HTMLInputElement>(null);

  useEffect(() => {
    setSelected(new Map());
    setTyped("");
    setMatch("");
  }, [space, folder]);
  useEffect(() => {
    const timer = setTimeout(() => setMatch(typed.trim()), 250);
    return () => clearTimeout(timer);
  }, [typed]);
  useEffect(() => {
    if (!count) return;
    // Many small ones are shown together.
    const timer = setTimeout(reload, 400);
    return () => clearTimeout(timer);
  }, [count]);

  const about = spaces.data?.find(({ name }) => name === space);
  const isOwn = owns(user, about);
  const canUpload = isOwn || space === "default";
  const writable = (spaces.data ?? []).filter((each) => owns(user, each) || each.name === "default");
  // Also those that are not in the part of the list that was read.
  const chosen = useMemo(() => [...selected.values()], [selected]);

  const take = (input: HTMLInputElement): void => {
    const files = [...(input.files ?? [])].map((file) => ({
      path: join(folder, file.webkitRelativePath || file.name),
      file,
    }));
    input.value = "";
    add(space, files);
  };
  const drop = async (event: DragEvent): Promise<void> => {
    event.preventDefault();
    setOver(false);
    if (!event.dataTransfer || !canUpload) return;
    const { found, unread } = await dropped(event.dataTransfer);
    if (unread.length) say(T.files.dropUnread(unread), true);
    else if (!found.length) say(T.files.dropEmpty, true);
    add(
      space,
      found.map(({ path, file }) => ({ path: join(folder, path), file })),
    );
  };

  const after = (done: Entry[]): void => {
    const paths = new Set(done.map((each) => each.path));
    setSelected((last) => new Map([...last].filter(([path]) => !paths.has(path))));
    reload();
  };
  const open = (entry: Entry): void =>
    ask((close) => <Preview {...{ space, entry, isOwn, close }} />);
  const act = {
    rename: (entry: Entry) =>
      ask((close) => <Rename space={space} entry={entry} close={close} done={after} />),
    move: (entries: Entry[], copies: boolean) =>
      ask((close) => (
        <Move {...{ space, spaces: writable, folder, entries, copies, close }} done={after} />
      )),
    remove: (entries: Entry[]) =>
      ask((close) => <Remove space={space} entries={entries} close={close} done={after} />),
  };
  const items = (entry: Entry): (Item | false)[] => [
    entry.kind === "file" &&
      canPreview(entry.name) && {
        text: T.files.preview,
        icon: "file",
        run: () => open(entry),
      },
    entry.kind === "file" && {
      text: T.files.download,
      icon: "download",
      run: () => download(space, entry.path),
    },
    entry.kind === "file" &&
      isOwn && {
        text: T.files.share,
        icon: "link",
        run: () => ask((close) => <Share space={space} entry={entry} close={close} />),
      },
    entry.kind === "file" &&
      (isOwn || Boolean(user?.is_admin)) && {
        text: T.files.locate,
        icon: "disk",
        run: () => ask((close) => <Locate space={space} entry={entry} close={close} />),
      },
    canUpload && { text: T.files.rename, run: () => act.rename(entry) },
    canUpload && { text: T.files.move, run: () => act.move([entry], false) },
    canUpload && { text: T.files.copy, run: () => act.move([entry], true) },
    canUpload && {
      text: T.files.remove,
      icon: "trash",
      danger: true,
      run: () => act.remove([entry]),
    },
  ];

  return (
    <div
      class={over ? "files over" : "files"}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(canUpload);
      }}
      onDragLeave={(event) => {
        if (!event.currentTarget.contains(event.relatedTarget as Node | null)) setOver(false);
      }}
      onDrop={drop}
    >
      <Head
        title={lastSegment(folder) || space}
        crumbs={
          <Crumbs
            trail={[
              { text: T.spaces.title, to: link("files") },
              { text: space, to: link("files", space) },
              ...folderTrail(folder, (path) => link("files", space, ...path)),
            ]}
          />
        }
      >
        {canUpload && (
          <>
            <Button icon="upload" look="main" onClick={() => filesInput.current?.click()}>
              {T.files.upload}
            </Button>
            <Menu
              label={T.common.more}
              items={[
                {
                  text: T.files.uploadFolder,
                  icon: "upload",
                  run: () => folderInput.current?.click(),
                },
                {
                  text: T.files.newFolder,
                  icon: "folder",
                  run: () => ask((close) => <NewFolder {...{ space, folder, close }} />),
                },
              ]}
            />
          </>
        )}
        <input
          ref={filesInput}
          class="unseen"
          type="file"
          multiple
          tabIndex={-1}
          aria-hidden="true"
          onChange={(event) => take(event.currentTarget)}
        />
        <input
          ref={folderInput}
          class="unseen"
          type="file"
          {...{ webkitdirectory: true }}
          tabIndex={-1}
          aria-hidden="true"
          onChange={(event) => take(event.currentTarget)}
        />
      </Head>
      {isKnown ? (
        <>
          {isOwn && !folder && <SpaceTabs space={space} now="files" />}
          <div class="filter">
            {chosen.length ? (
              <div class="selection">
                <strong>{T.files.selected(chosen.length)}</strong>
                {canUpload && (
                  <>
                    <Button onClick={() => act.move(chosen, false)}>{T.files.move}</Button>
                    <Button onClick={() => act.move(chosen, true)}>{T.files.copy}</Button>
                    <Button icon="trash" look="danger" onClick={() => act.remove(chosen)}>
                      {T.files.remove}
                    </Button>
                  </>
                )}
                <Button look="quiet" onClick={() => setSelected(new Map())}>
                  {T.files.clear}
                </Button>
              </div>
            ) : (
              <>
                <input
                  type="search"
                  aria-label={T.common.filter}
                  placeholder={T.common.filter}
                  value={typed}
                  onInput={(event) => setTyped(event.currentTarget.value)}
                />
                {list && <span class="count">{T.files.count(list.length, hasMore)}</span>}
              </>
            )}
          </div>
          <Trouble on={entries} />
          {list && entries.isLarge && <p class="about">{T.files.large}</p>}
          {list?.length === 0 &&
            (match ? (
              <Empty icon="folder" title={T.files.noMatch} hint={T.files.noMatchHint} />
            ) : (
              <Empty
                icon="upload"
                title={T.files.empty}
                hint={canUpload ? T.files.emptyHint : T.files.emptyForeign}
              />
            ))}
          {list && list.length > 0 && (
            <Table
              {...{ list, isOld, more, hasMore, selected, setSelected, items, open }}
              sort={entries.by.sort}
              order={entries.by.order}
              to={(path) => link("files", space, ...path)}
            />
          )}
        </>
      ) : (
        <p class="loading">{T.common.loading}</p>
      )}
      {over && <div class="dropping">{T.files.drop}</div>}
    </div>
  );
}

/** What is selected, by path. */
type Selection = ReadonlyMap<string, Entry>;

export interface Step {
  text: string;
  to: string;
}

export function folderTrail(folder: string, to: (path: string[]) => string): Step[] {
  const parts = folder ? folder.split("/") : [];
  return parts.map((text, index) => ({ text, to: to(parts.slice(0, index + 1)) }));
}

export function Crumbs({ trail }: { trail: Step[] }) {
  return (
    <nav class="crumbs" aria-label={T.files.folder}>
      <ol>
        {trail.map(({ text, to }, index) => (
          <li key={to}>
            {index === trail.length - 1 ? <h1>{text}</h1> : <a href={to}>{text}</a>}
          </li>
        ))}
      </ol>
    </nav>
  );
}

const TABS = ["files", "trash", "snapshots", "shares"] as const;

/** What a storage namespace has besides its files. */
export function SpaceTabs({ space, now }: { space: string; now: (typeof TABS)[number] }) {
  return (
    <nav class="tabs" aria-label={space}>
      {TABS.map((each) => (
        <a key={each} href={link(each, space)} aria-current={each === now ? "page" : undefined}>
          {T.space[each]}
        </a>
      ))}
    </nav>
  );
}

const NOTHING: Selection = new Map();

export function Table({
  to,
  list,
  isOld,
  hasMore,
  more,
  sort,
  order,
  selected = NOTHING,
  setSelected,
  items,
  open,
}: {
  /** The page of a folder. */
  to: (path: string[]) => string;
  list: Entry[];
  /** Whether others are to be shown in their place. */
  isOld: boolean;
  hasMore: boolean;
  more: () => void;
  sort: string;
  order: string;
  /** If entries can be selected. */
  selected?: Selection;
  setSelected?: (value: Selection) => void;
  items: (entry: Entry) => (Item | false)[];
  open: (entry: Entry) => void;
}) {
  const { path } = useStore(place);
  const root = useRef<HTMLDivElement>(null);
  const [seen, setSeen] = useState(() => ({ first: 0, last: Math.ceil(innerHeight / ROW) + AROUND }));
  // Only the rows around those that are seen are there: a folder may have 100,000.
  useEffect(() => {
    const scroller = document.getElementById("content");
    const box = root.current;
    if (!scroller || !box) return;
    const look = (): void => {
      const top = scroller.getBoundingClientRect().top - box.getBoundingClientRect().top;
      const first = Math.floor(top / ROW);
      const last = Math.ceil((top + scroller.clientHeight) / ROW);
      const isThere = (old: typeof seen): boolean =>
        old.first <= Math.max(0, first - NEAR) && old.last >= last + NEAR;
      setSeen((old) =>
        isThere(old) ? old : { first: Math.max(0, first - AROUND), last: last + AROUND },
      );
    };
    look();
    scroller.addEventListener("scroll", look, { passive: true });
    addEventListener("resize", look);
    return () => {
      scroller.removeEventListener("scroll", look);
      removeEventListener("resize", look);
    };
  }, [list]);
  useEffect(() => {
    if (hasMore && seen.last > list.length - 100) more();
  }, [seen, list, hasMore]);

  const toggle = (entry: Entry): void => {
    const changed = new Map(selected);
    if (!changed.delete(entry.path)) changed.set(entry.path, entry);
    setSelected?.(changed);
  };
  const all = useMemo(() => list.every(({ path }) => selected.has(path)), [list, selected]);
  const press = (event: KeyboardEvent): void => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = (event.target as HTMLElement).closest("tr");
    if (!step || !row || (event.target as HTMLElement).closest(".menu")) return;
    event.preventDefault();
    const next = step > 0 ? row.nextElementSibling : row.previousElementSibling;
    (next?.querySelector(".name") as HTMLElement | null)?.focus();
  };
  const header = (name: string, text: string) => {
    const now = sort === name;
    const turned = now && order === "asc" ? "desc" : "asc";
    return (
      <th
        scope="col"
        class={name}
        aria-sort={now ? (order === "asc" ? "ascending" : "descending") : undefined}
      >
        <a href={`${link(...path)}?sort=${name}&order=${turned}`}>
          {text}
          {now && <Icon name={order === "asc" ? "up" : "down"} />}
        </a>
      </th>
    );
  };
  const shown = list.slice(seen.first, seen.last);
  return (
    <div class={isOld ? "table old" : "table"} aria-busy={isOld} ref={root} onKeyDown={press}>
      <table>
        <thead>
          <tr>
            <td class="check">
              {setSelected && (
                <input
                  type="checkbox"
                  aria-label={T.files.selectAll}
                  checked={all}
                  onChange={() =>
                    setSelected(new Map(all ? [] : list.map((each) => [each.path, each])))
                  }
                />
              )}
            </td>
            {header("name", T.common.name)}
            {header("size", T.common.size)}
            {header("modified", T.files.modified)}
            <th scope="col" class="act">
              <span class="unseen">{T.common.actions}</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {seen.first > 0 && <Gap height={seen.first * ROW} />}
          {shown.map((entry) => (
            <tr key={entry.path} class={selected.has(entry.path) ? "selected" : ""}>
              <td class="check">
                {setSelected && (
                  <input
                    type="checkbox"
                    aria-label={T.files.select(entry.name)}
                    checked={selected.has(entry.path)}
                    onChange={() => toggle(entry)}
                  />
                )}
              </td>
              <td>
                {entry.kind === "folder" ? (
                  <a class="name" href={to(entry.path.split("/"))}>
                    <Icon name="folder" />
                    <span title={entry.name}>{entry.name}</span>
                  </a>
                ) : (
                  <button class="name" type="button" onClick={() => open(entry)}>
                    <Icon name="file" />
                    <span title={entry.name}>{entry.name}</span>
                  </button>
                )}
              </td>
              <td class="size">{entry.kind === "file" ? bytes(entry.size) : ""}</td>
              <td class="modified" title={entry.modified_at ? fullTime(entry.modified_at) : ""}>
                {entry.modified_at ? time(entry.modified_at) : ""}
              </td>
              <td class="act">
                <Menu label={`${T.common.actions}: ${entry.name}`} items={items(entry)} />
              </td>
            </tr>
          ))}
          {seen.last < list.length && <Gap height={(list.length - seen.last) * ROW} />}
        </tbody>
      </table>
    </div>
  );
}

const Gap = ({ height }: { height: number }) => (
  <tr class="space" aria-hidden="true">
    <td colSpan={5} style={{ height: `${height}px` }} />
  </tr>
);

// --- dialogs --------------------------------------------------------------------------------

interface About {
  space: string;
  close: () => void;
  /** What is to be shown as it is now. */
  done: (entries: Entry[]) => void;
}

/**
 * Do something with each entry. What is done is not done again when those are tried again that
 * failed; and if the dialog is closed, the rest stays as it is.
 */
function useEach(entries: Entry[], done: (entries: Entry[]) => void) {
  const [left, setLeft] = useState(entries);
  const [count, setCount] = useState(0);
  const isGone = useRef(false);
  useEffect(() => () => void (isGone.current = true), []);
  const all = entries.length;
  const run = async (
    work: (entry: Entry) => Promise<unknown>,
    text: (count: number) => string,
  ): Promise<void> => {
    const finished = new Set<Entry>();
    let problem: unknown;
    for (const entry of left) {
      if (isGone.current) break;
      try {
        await work(entry);
        finished.add(entry);
        setCount((last) => last + 1);
      } catch (failure) {
        const [status, why] = [failure instanceof Failure ? failure.status : -1, message(failure)];
        problem ??= all > 1 ? new Failure(status, `${entry.name}: ${why}`) : failure;
        // It is only this one that is gone, or whose name is taken.
        if (![404, 409].includes(status)) break;
      }
    }
    const rest = left.filter((each) => !finished.has(each));
    setLeft(rest);
    if (finished.size) done([...finished]);
    if (problem) throw problem;
    say(rest.length ? T.files.progress(all - rest.length, all) : text(all));
  };
  const progress = all > 1 && count > 0 && <p role="status">{T.files.progress(count, all)}</p>;
  return { left, run, progress };
}

function Rename({ space, entry, close, done }: About & { entry: Entry }) {
  const [name, setName] = useState(entry.name);
  const folder = entry.path.slice(0, Math.max(0, entry.path.length - entry.name.length - 1));
  const submit = async (): Promise<void> => {
    const body = { source: entry.path, target: join(folder, name) };
    await call("POST", inSpace(space, "move"), { body });
    done([entry]);
  };
  return (
    <Dialog
      title={T.files.renameTitle(entry.name)}
      action={T.common.save}
      submit={submit}
      disabled={!name || name === entry.name}
      close={close}
    >
      <Field label={T.files.newName}>
        <input
          name="name"
          autofocus
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
        />
      </Field>
    </Dialog>
  );
}

function Move({
  space,
  spaces,
  folder,
  entries,
  copies,
  close,
  done,
}: About & { spaces: Space[]; folder: string; entries: Entry[]; copies: boolean }) {
  const [namespace, setNamespace] = useState(space);
  const [target, setTarget] = useState(folder);
  const { left, run, progress } = useEach(entries, done);
  const one = left.length === 1 ? left[0] : undefined;
  const [typed, setTyped] = useState<string>();
  const name = typed ?? one?.name ?? "";
  const submit = (): Promise<void> => {
    const into = target.replace(/^\/+|\/+$/g, "");
    const work = (entry: Entry): Promise<unknown> => {
      const body = { source: entry.path, target: join(into, one ? name : entry.name) };
      return copies
        ? call("POST", inSpace(space, "copy"), { body: { ...body, namespace } })
        : call("POST", inSpace(space, "move"), { body });
    };
    return run(work, copies ? T.files.copied : T.files.moved);
  };
  return (
    <Dialog
      title={(copies ? T.files.copyTitle : T.files.moveTitle)(left.length)}
      action={(copies ? T.files.copy : T.files.move).replace("…", "")}
      submit={submit}
      disabled={Boolean(one) && !name}
      close={close}
    >
      {copies && (
        <Field label={T.files.targetSpace}>
          <select
            value={namespace}
            onChange={(event) => setNamespace(event.currentTarget.value)}
          >
            {spaces.map(({ name }) => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </select>
        </Field>
      )}
      <Field label={T.files.targetFolder} hint={T.files.targetHint}>
        <input
          name="target"
          autofocus
          value={target}
          onInput={(event) => setTarget(event.currentTarget.value)}
        />
      </Field>
      {one && (
        <Field label={T.common.name}>
          <input
            name="name"
            value={name}
            onInput={(event) => setTyped(event.currentTarget.value)}
          />
        </Field>
      )}
      {progress}
    </Dialog>
  );
}

function Remove({ space, entries, close, done }: About & { entries: Entry[] }) {
  const { left, run, progress } = useEach(entries, done);
  const work = async ({ kind, path }: Entry): Promise<void> => {
    try {
      await (kind === "folder"
        ? call("DELETE", inSpace(space, "folder"), { query: { path } })
        : call("DELETE", "/storage/delete", { query: { name: path, namespace: space } }));
    } catch (failure) {
      // It is gone, perhaps by a request whose answer was lost.
      if (!(failure instanceof Failure) || failure.status !== 404) throw failure;
    }
  };
  return (
    <Dialog
      title={T.files.removeTitle(left.length)}
      action={T.common.remove}
      look="danger"
      submit={() => run(work, T.files.removed)}
      close={close}
    >
      <ul class="names">
        {left.slice(0, 8).map(({ path, name, kind }) => (
          <li key={path}>
            <Icon name={kind} /> {name}
          </li>
        ))}
        {left.length > 8 && <li>…</li>}
      </ul>
      <p>{T.files.removeText(space === "default")}</p>
      {progress}
    </Dialog>
  );
}

function NewFolder({
  space,
  folder,
  close,
}: {
  space: string;
  folder: string;
  close: () => void;
}) {
  const [name, setName] = useState("");
  const submit = (): void => go(link("files", space, ...folder.split("/"), ...name.split("/")).replace(/\/+/g, "/"));
  return (
    <Dialog
      title={T.files.newFolder}
      action={T.common.create}
      submit={submit}
      disabled={!name.replace(/\//g, "")}
      close={close}
    >
      <Field label={T.common.name} hint={T.files.newFolderHint}>
        <input
          name="name"
          autofocus
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
        />
      </Field>
    </Dialog>
  );
}
