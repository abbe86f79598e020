// What all pages are made of.
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { Failure, message, outdated, reached, session, type Loaded } from "./api";
import { fullTime, time } from "./format";
import { Store, useStore } from "./store";
import { T } from "./texts";

type Children = { children?: ComponentChildren };

const ICONS = {
  folder: "M3 6a2 2 0 0 1 2-2h4l2 2h8a2 2 0 0 1 2 2v9a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2z",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
  box: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  key: "M8 15a4 4 0 1 1 3.5-6H21v4h-3v3h-4v-3h-2.5A4 4 0 0 1 8 15zM8 11h.01",
  user: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4 21c0-4 3.6-6 8-6s8 2 8 6",
  users: "M9 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM2 21c0-4 3-6 7-6s7 2 7 6M16 4.5a4 4 0 0 1 0 7M18 15.5c2.5.8 4 2.6 4 5.5",
  cluster: "M4 4h16v6H4zM4 14h16v6H4zM8 7h.01M8 17h.01",
  disk: "M4 12l2-8h12l2 8v8H4zM4 12h16M8 16h.01",
  clock: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 7v5l3 3",
  flag: "M5 21V4h13l-3 4.5 3 4.5H5",
  book: "M4 5c3-1 6-1 8 1 2-2 5-2 8-1v14c-3-1-6-1-8 1-2-2-5-2-8-1zM12 6v14",
  out: "M14 4H5v16h9M10 12h11M17 8l4 4-4 4",
  menu: "M4 6h16M4 12h16M4 18h16",
  sun: "M12 17a5 5 0 1 0 0-10 5 5 0 0 0 0 10zM12 1v3M12 20v3M1 12h3M20 12h3M4 4l2 2M18 18l2 2M4 20l2-2M18 6l2-2",
  dots: "M5 11.5v1M12 11.5v1M19 11.5v1",
  upload: "M12 16V4M7 9l5-5 5 5M4 20h16",
  download: "M12 4v12M7 11l5 5 5-5M4 20h16",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  check: "M4 12l5 5L20 6",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 14h10l1-14",
  camera: "M4 8h4l2-3h4l2 3h4v11H4zM12 16.5a3 3 0 1 0 0-6 3 3 0 0 0 0 6z",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
  play: "M7 4l13 8-13 8z",
  stop: "M6 6h12v12H6z",
  terminal: "M4 5h16v14H4zM7 9l3 3-3 3M12 15h4",
  warn: "M12 3l10 18H2zM12 10v5M12 18h.01",
  up: "M6 15l6-6 6 6",
  down: "M6 9l6 6 6-6",
};
export type IconName = keyof typeof ICONS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
      <path d={ICONS[name]} />
    </svg>
  );
}

interface ButtonProps extends Omit<JSX.ButtonHTMLAttributes<HTMLButtonElement>, "icon"> {
  icon?: IconName;
  look?: "main" | "danger" | "quiet" | undefined;
  /** The name of a button that shows only its icon. */
  label?: string;
}

export function Button({ icon, look, label, children, ...rest }: ButtonProps & Children) {
  return (
    <button
      type="button"
      class={`button ${look ?? ""}`}
      {...(label ? { "aria-label": label, title: label } : {})}
      {...rest}
    >
      {icon && <Icon name={icon} />}
      {children && <span>{children}</span>}
    </button>
  );
}

/** The top of a page. */
export function Head({
  title,
  crumbs,
  about,
  children,
}: { title: string; crumbs?: ComponentChildren; about?: string } & Children) {
  useEffect(() => {
    document.title = `${title} · ${T.product}`;
  }, [title]);
  return (
    <header class="head">
      <div class="titles">
        {crumbs ?? <h1>{title}</h1>}
        {about && <p class="about">{about}</p>}
      </div>
      <div class="tools">{children}</div>
    </header>
  );
}

/** Where there is nothing; `hint` says what one can do about it. */
export function Empty({
  icon,
  title,
  hint,
  children,
}: { icon: IconName; title: string; hint: string } & Children) {
  return (
    <div class="empty">
      <Icon name={icon} />
      <h2>{title}</h2>
      <p>{hint}</p>
      {children}
    </div>
  );
}

/** Why there is nothing of what is loaded, or nothing newer. */
export function Trouble({
  on: { data, error, reload },
}: {
  on: Pick<Loaded<unknown>, "data" | "error" | "reload">;
}) {
  const before = data !== undefined && error?.isAway ? error : null;
  // The banner says it: here it would move what is below.
  useEffect(() => {
    if (!before) return;
    outdated.set([...outdated.value, before]);
    return () => outdated.set(outdated.value.filter((each) => each !== before));
  }, [before]);
  if (before) return null;
  if (!error) return data === undefined ? <p class="loading">{T.common.loading}</p> : null;
  return (
    <Problem error={error}>
      <Button onClick={reload}>{T.failures.again}</Button>
    </Problem>
  );
}

/** Says that what is shown is from before, and why. It has a place of its own, and moves nothing. */
export function Banner() {
  const isReached = useStore(reached);
  const [failure] = useStore(outdated);
  if (isReached && !failure) return null;
  return (
    <div class="banner" role="status">
      <Icon name="warn" />
      {isReached && failure ? T.failures.before(failure.message) : T.failures.banner}
    </div>
  );
}

/** `children` of what has been loaded; or why there is nothing. */
export function Wait<R>({
  on,
  children,
}: {
  on: Loaded<R>;
  children: (data: R) => ComponentChildren;
}) {
  return (
    <>
      <Trouble on={on} />
      {on.data !== undefined && children(on.data)}
    </>
  );
}

export function Problem({ error, children }: { error: unknown } & Children) {
  return (
    <div class="problem" role="alert">
      <Icon name="warn" />
      <span>{message(error)}</span>
      {children}
    </div>
  );
}

export function Field({ label, hint, children }: { label: string; hint?: string | undefined } & Children) {
  return (
    <label class="field">
      <span>{label}</span>
      {children}
      {hint && <small>{hint}</small>}
    </label>
  );
}

/**
 * A dialog with a form. It closes when `submit` has succeeded; else it shows why not. If the session
 * ends it makes room for the login: what was typed waits for the same user, what is only shown is
 * gone. A click beside it closes one that is only looked at, unless that is `once`.
 */
export function Dialog({
  title,
  submit,
  action,
  look,
  disabled,
  close,
  wide,
  once,
  children,
}: {
  title: string;
  action?: string;
  look?: "main" | "danger";
  submit?: () => Promise<unknown> | unknown;
  disabled?: boolean;
  close: () => void;
  wide?: boolean;
  /** What it shows is not shown again. */
  once?: boolean;
} & Children) {
  const dialog = useRef<HTMLDialogElement>(null);
  const isGone = useRef(false);
  const id = useId();
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const hasSession = Boolean(useStore(session));
  useEffect(() => {
    const before = document.activeElement;
    const mine = dialog.current;
    return () => {
      // While it is open nothing else can have the focus.
      isGone.current = true;
      mine?.close();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  useEffect(() => {
    if (hasSession) dialog.current?.showModal();
    else if (submit) dialog.current?.close();
    else close();
  }, [hasSession]);
  const send = async (event: Event): Promise<void> => {
    event.preventDefault();
    if (!submit || busy || disabled) return;
    setBusy(true);
    setError(null);
    const user = session.value?.user_id;
    try {
      if ((await submit()) !== false) close();
    } catch (failure) {
      // Who has closed it is to know, too; nobody else is.
      if (!isGone.current) setError(failure);
      else if (session.value?.user_id === user) say(`${title}: ${message(failure)}`, true);
    }
    setBusy(false);
  };
  return (
    <dialog
      ref={dialog}
      class={wide ? "wide" : ""}
      aria-labelledby={id}
      onClose={() => isGone.current || !session.value || close()}
      onCancel={(event) => {
        event.preventDefault();
        close();
      }}
      onMouseDown={(event) => event.target === dialog.current && !submit && !once && close()}
    >
      <form onSubmit={send}>
        <header>
          <h2 id={id}>{title}</h2>
          <Button icon="close" look="quiet" label={T.common.close} onClick={close} />
        </header>
        <div class="content">{children}</div>
        {error !== null && <Problem error={error} />}
        {submit && (
          <footer>
            <Button onClick={close}>{T.common.cancel}</Button>
            <Button type="submit" look={look ?? "main"} disabled={Boolean(disabled) || busy}>
              {action}
            </Button>
          </footer>
        )}
      </form>
    </dialog>
  );
}

/** Ask whether it is meant, before what cannot be taken back. */
export function confirm(about: {
  title: string;
  text: string;
  action: string;
  run: () => Promise<unknown>;
}): void {
  const { title, text, action, run } = about;
  ask((close) => (
    <Dialog look="danger" submit={run} {...{ title, action, close }}>
      <p>{text}</p>
    </Dialog>
  ));
}

/** One dialog at a time, opened from anywhere. */
export const dialogs = new Store<((close: () => void) => JSX.Element) | null>(null);
/** The user whose dialog it is. */
let asked: string | undefined;

export function ask(made: (close: () => void) => JSX.Element): void {
  asked = session.value?.user_id;
  dialogs.set(made);
}

session.listen(() => {
  if (session.value && session.value.user_id !== asked) dialogs.set(null);
});

export function Dialogs() {
  const made = useStore(dialogs);
  // It closes itself alone: another may be open when its work is done.
  const close = (): void => {
    if (dialogs.value === made) dialogs.set(null);
  };
  return made && made(close);
}

/** Short messages that go by themselves. */
interface Note {
  id: number;
  text: string;
  bad: boolean;
}
const notes = new Store<Note[]>([]);
let lastNote = 0;

export function say(text: string, bad = false): void {
  const note = { id: ++lastNote, text, bad };
  notes.set([...notes.value.slice(-3), note]);
  setTimeout(() => drop(note.id), bad ? 12000 : 5000);
}

const drop = (id: number): void => notes.set(notes.value.filter((each) => each.id !== id));

/** Run what a button does, and say what went wrong. */
export async function attempt(action: () => Promise<unknown>, done?: string): Promise<void> {
  try {
    await action();
    if (done) say(done);
  } catch (error) {
    say(message(error), true);
  }
}

export function Notes() {
  const list = useStore(notes);
  return (
    <div class="notes" role="status" aria-live="polite">
      {list.map((note) => (
        <div key={note.id} class={note.bad ? "note bad" : "note"}>
          <span>{note.text}</span>
          <Button icon="close" look="quiet" label={T.common.close} onClick={() => drop(note.id)} />
        </div>
      ))}
    </div>
  );
}

export interface Item {
  text: string;
  icon?: IconName;
  danger?: boolean;
  run: () => void;
}

/** A button with a menu of actions below it. */
export function Menu({ items, label }: { items: (Item | false)[]; label?: string }) {
  const [open, setOpen] = useState(false);
  const root = useRef<HTMLDivElement>(null);
  const list = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!open) return;
    const away = (event: Event): void => {
      if (!root.current?.contains(event.target as Node)) setOpen(false);
    };
    addEventListener("pointerdown", away);
    const menu = list.current;
    const button = root.current?.getBoundingClientRect();
    if (menu && button) {
      // Fixed, so that no table cuts it off; above the button where there is no room below.
      const below = innerHeight - button.bottom > menu.offsetHeight + 8;
      menu.style.top = `${below ? button.bottom + 4 : button.top - menu.offsetHeight - 4}px`;
      menu.style.left = `${Math.max(8, button.right - menu.offsetWidth)}px`;
      menu.querySelector("button")?.focus();
    }
    const moved = (): void => setOpen(false);
    addEventListener("scroll", moved, true);
    return () => {
      removeEventListener("pointerdown", away);
      removeEventListener("scroll", moved, true);
    };
  }, [open]);
  const press = (event: KeyboardEvent): void => {
    const buttons = [...(list.current?.querySelectorAll("button") ?? [])];
    const at = buttons.indexOf(document.activeElement as HTMLButtonElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      buttons[(at + step + buttons.length) % buttons.length]?.focus();
    } else if (event.key === "Escape" || event.key === "Tab") {
      setOpen(false);
      root.current?.querySelector("button")?.focus();
      if (event.key === "Escape") event.stopPropagation();
    }
  };
  if (!items.some(Boolean)) return null;
  return (
    <div class="menu" ref={root} onKeyDown={press}>
      <Button
        icon="dots"
        look="quiet"
        label={label ?? T.common.actions}
        aria-haspopup="menu"
        aria-expanded={open}
        onClick={() => setOpen(!open)}
      />
      {open && (
        <div class="items" role="menu" ref={list}>
          {items.map(
            (item) =>
              item && (
                <button
                  type="button"
                  role="menuitem"
                  key={item.text}
                  class={item.danger ? "danger" : ""}
                  onClick={() => {
                    setOpen(false);
                    root.current?.querySelector("button")?.focus();
                    item.run();
                  }}
                >
                  {item.icon && <Icon name={item.icon} />}
                  {item.text}
                </button>
              ),
          )}
        </div>
      )}
    </div>
  );
}

export interface Column<R> {
  /** Without one it has what can be done with the row. */
  head?: string;
  /** The class of its cells. */
  kind?: string;
  /** Whether it says what the row is. */
  names?: boolean;
  cell?: (row: R) => ComponentChildren;
  /** For a time, in seconds; 0: never. */
  at?: (row: R) => number;
}

export function Rows<R>({
  label,
  rows,
  id,
  columns,
}: {
  label: string;
  rows: R[];
  id: (row: R) => string | number;
  columns: Column<R>[];
}) {
  return (
    <div class="table scroll" tabIndex={0} role="group" aria-label={label}>
      <table>
        <thead>
          <tr>
            {columns.map(({ head, kind }) =>
              head ? (
                <th scope="col" class={kind}>
                  {head}
                </th>
              ) : (
                <td class={kind} />
              ),
            )}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={id(row)}>
              {columns.map(({ head, kind, names, cell, at }) => {
                const when = at?.(row);
                if (names) return <th scope="row">{cell?.(row)}</th>;
                return (
                  <td class={kind ?? (head ? "" : "act")} title={when ? fullTime(when) : undefined}>
                    {when === undefined ? cell?.(row) : when ? time(when) : T.common.never}
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Whether the text of `from` is copied now. If not, it is selected. */
async function copied(text: string, from: Element | null): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // There is no clipboard where the page comes over plain http, from another host.
    if (from) getSelection()?.selectAllChildren(from);
    if (!document.execCommand("copy")) return false;
    getSelection()?.removeAllRanges();
    return true;
  }
}

/** A text that is there to be copied. */
export function Copyable({ text, block }: { text: string; block?: boolean }) {
  const [done, setDone] = useState<boolean>();
  const root = useRef<HTMLDivElement>(null);
  const copy = async (): Promise<void> => {
    const isDone = await copied(text, root.current?.firstElementChild ?? null);
    setDone(isDone);
    if (isDone) setTimeout(() => setDone(undefined), 2000);
  };
  return (
    <div class={block ? "copyable block" : "copyable"} ref={root}>
      {block ? <pre tabIndex={0}>{text}</pre> : <code>{text}</code>}
      <Button icon={done ? "check" : "link"} onClick={copy}>
        {done ? T.common.copied : T.common.copy}
      </Button>
      {done === false && <small role="status">{T.common.copyYourself}</small>}
    </div>
  );
}

export function Badge({ kind, children }: { kind?: string } & Children) {
  return <span class={`badge ${kind ?? ""}`}>{children}</span>;
}

export function Bar({ used, total, label }: { used: number; total: number; label: string }) {
  const part = total > 0 ? Math.min(1, used / total) : 0;
  const level = part > 0.95 ? "bad" : part > 0.8 ? "warn" : "";
  return (
    <div class={`bar ${level}`} role="img" aria-label={label} title={label}>
      <div style={{ width: `${part * 100}%` }} />
    </div>
  );
}

export { Failure };
