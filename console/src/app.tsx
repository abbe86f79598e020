// The frame around all pages, and which page is shown.
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { authorization, Failure, get, leave, request, session, useLoad } from "./api";
import { Access } from "./pages/access";
import { Account } from "./pages/account";
import { Cluster } from "./pages/cluster";
import { AllContainers, Container, Containers } from "./pages/containers";
import { Login } from "./pages/login";
import { Events } from "./pages/events";
import { Folder } from "./pages/folder";
import { Masters } from "./pages/masters";
import { Servers } from "./pages/servers";
import { Shares } from "./pages/shares";
import { Snapshots } from "./pages/snapshots";
import { Spaces } from "./pages/spaces";
import { Trash } from "./pages/trash";
import { Sessions, Users } from "./pages/users";
import { link, place } from "./router";
import { Store, useStore } from "./store";
import { T } from "./texts";
import { Banner, Button, Dialogs, Icon, Notes, say, type IconName } from "./ui";
import { Panel } from "./uploads";

interface Page {
  icon: IconName;
  text: string;
  show: ComponentType;
  /** Pages below it, which are not in the navigation. */
  below?: ComponentType;
  admin?: boolean;
  /** The page of the navigation that it belongs to. */
  in?: string;
}

const owned = (show: ComponentType): Page => ({ icon: "folder", text: "", show, in: "files" });

const PAGES: Record<string, Page> = {
  trash: owned(Trash),
  snapshots: owned(Snapshots),
  shares: owned(Shares),
  files: { icon: "folder", text: T.nav.files, show: Spaces, below: Folder },
  containers: { icon: "box", text: T.nav.containers, show: Containers, below: Container },
  access: { icon: "key", text: T.nav.access, show: Access },
  account: { icon: "user", text: T.nav.account, show: Account },
  cluster: { icon: "cluster", text: T.nav.cluster, show: Cluster, admin: true },
  servers: { icon: "disk", text: T.nav.servers, show: Servers, admin: true },
  masters: { icon: "flag", text: T.nav.masters, show: Masters, admin: true },
  events: { icon: "clock", text: T.nav.events, show: Events, admin: true },
  users: { icon: "users", text: T.nav.users, show: Users, admin: true },
  machines: { icon: "box", text: T.nav.machines, show: AllContainers, admin: true },
  sessions: { icon: "out", text: T.nav.sessions, show: Sessions, admin: true },
};

type Theme = "auto" | "light" | "dark";
const THEMES: Theme[] = ["auto", "light", "dark"];
const theme = new Store<Theme>((localStorage.getItem("gfs-theme") as Theme | null) ?? "auto");
const paint = (): void => void (document.documentElement.dataset.theme = theme.value);
theme.listen(paint);
paint();

function nextTheme(): void {
  const next = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? "auto";
  localStorage.setItem("gfs-theme", next);
  theme.set(next);
}

export function App() {
  const user = useStore(session);
  return (
    <>
      {user ? <Shell /> : <Login />}
      <Dialogs />
      <Notes />
    </>
  );
}

function Shell() {
  const user = useStore(session);
  const { path } = useStore(place);
  const [open, setOpen] = useState(false);
  useEffect(() => setOpen(false), [path]);
  // Routes for everybody answer the same when the session has ended; this one notices.
  useLoad(path.join("/"), (signal) => get("/api/session", {}, signal), 30);
  const name = path[0] && PAGES[path[0]] ? path[0] : "files";
  const page = PAGES[name] as Page;
  const Shown = path.length > 1 && page.below ? page.below : page.show;
  return (
    <div class={open ? "shell open" : "shell"}>
      <a class="skip" href="#content" onClick={focusContent}>
        {T.common.skip}
      </a>
      <header class="top">
        <Button icon="menu" look="quiet" label={T.nav.menu} onClick={() => setOpen(!open)} />
        <a class="product" href="#/">
          {T.product}
        </a>
      </header>
      <nav class="side" aria-label={T.nav.menu}>
        <a class="product" href="#/">
          {T.product}
        </a>
        <Links of={(page) => !page.admin} name={name} />
        {user?.is_admin && Object.values(PAGES).some((page) => page.admin) && (
          <>
            <h2>{T.nav.administration}</h2>
            <Links of={(page) => Boolean(page.admin)} name={name} />
          </>
        )}
        <div class="foot">
          <a href="/docs" target="_blank" rel="noreferrer">
            <Icon name="book" />
            {T.nav.api}
          </a>
          <ThemeButton />
          <button type="button" onClick={logout}>
            <Icon name="out" />
            {T.nav.logout}
          </button>
          <p class="who">{user?.display_name || user?.username}</p>
        </div>
      </nav>
      <div class="scrim" onClick={() => setOpen(false)} />
      <main id="content" tabIndex={-1}>
        <Banner />
        <Shown key={name} />
      </main>
      <Panel />
    </div>
  );
}

function Links({ of, name }: { of: (page: Page) => boolean; name: string }) {
  return (
    <ul>
      {Object.entries(PAGES)
        .filter(([, page]) => page.text && of(page))
        .map(([each, page]) => (
          <li key={each}>
            <a href={link(each)} aria-current={each === (PAGES[name]?.in ?? name) ? "page" : undefined}>
              <Icon name={page.icon} />
              {page.text}
            </a>
          </li>
        ))}
    </ul>
  );
}

export function ThemeButton() {
  const now = useStore(theme);
  return (
    <button type="button" onClick={nextTheme}>
      <Icon name="sun" />
      {T.nav.theme[now]}
    </button>
  );
}

function focusContent(event: Event): void {
  event.preventDefault();
  document.getElementById("content")?.focus();
}

const LOGOUT_MS = 15_000;

/** It ends here in any case and at once, whether the server answers or not. */
async function logout(): Promise<void> {
  const headers = authorization();
  leave();
  try {
    await request("POST", "/api/logout", { headers, keepalive: true, ms: LOGOUT_MS });
  } catch (error) {
    const hasEnded = error instanceof Failure && error.status === 401;
    if (!hasEnded) say(T.login.unended, true);
  }
}
