// Users, their quotas, and sessions: for administrators.
import { useState } from "preact/hooks";
import { call, get, request, session, useLoad } from "../api";
import { bytesIn, exactBytes } from "../format";
import { useStore } from "../store";
import { T } from "../texts";
import {
  ask,
  Badge,
  Button,
  confirm,
  Dialog,
  Field,
  Head,
  Menu,
  Rows,
  say,
  Wait,
  type Item,
} from "../ui";
import { amount, SIZES, type QuotaName, type Quotas } from "./account";

interface User {
  user_id: string;
  username: string;
  display_name: string;
  is_admin: boolean;
  created_at: number;
}

export function Users() {
  const me = useStore(session);
  const list = useLoad("users", (signal) => get<User[]>("/admin/users", {}, signal), 30);
  const items = (user: User): (Item | false)[] => [
    {
      text: T.users.quota,
      run: () => ask((close) => <Quota user={user} close={close} />),
    },
    user.user_id !== me?.user_id && {
      text: T.users.change,
      icon: "user",
      run: () => ask((close) => <Change user={user} close={close} done={list.reload} />),
    },
    user.user_id !== me?.user_id && {
      text: T.users.remove,
      icon: "trash",
      danger: true,
      run: () =>
        confirm({
          title: T.users.removeTitle(user.username),
          text: T.users.removeText,
          action: T.common.remove,
          run: async () => {
            await request("DELETE", "/admin/users", { query: { id: user.user_id } });
            say(T.users.removed(user.username));
            list.reload();
          },
        }),
    },
  ];
  return (
    <>
      <Head title={T.users.title}>
        <Button
          icon="plus"
          look="main"
          onClick={() => ask((close) => <NewUser close={close} done={list.reload} />)}
        >
          {T.users.create}
        </Button>
      </Head>
      <Wait on={list}>
        {(rows) => (
          <Rows
            label={T.users.title}
            rows={rows}
            id={(user) => user.user_id}
            columns={[
              {
                head: T.users.username,
                names: true,
                cell: (user) => (
                  <>
                    {user.username} {user.is_admin && <Badge kind="info">{T.users.admin}</Badge>}
                    {user.display_name !== user.username && <small> {user.display_name}</small>}
                  </>
                ),
              },
              { head: T.account.id, cell: (user) => <code>{user.user_id}</code> },
              { head: T.users.since, at: (user) => user.created_at },
              {
                cell: (user) => (
                  <Menu label={`${T.common.actions}: ${user.username}`} items={items(user)} />
                ),
              },
            ]}
          />
        )}
      </Wait>
    </>
  );
}

interface About {
  close: () => void;
  done: () => void;
}

function NewUser({ close, done }: About) {
  const [username, setUsername] = useState("");
  const [display, setDisplay] = useState("");
  const [password, setPassword] = useState("");
  const [admin, setAdmin] = useState(false);
  const submit = async (): Promise<void> => {
    const body = { username, password, display_name: display, is_admin: admin };
    await call("POST", "/admin/users", { body });
    done();
  };
  return (
    <Dialog
      title={T.users.create}
      action={T.common.create}
      submit={submit}
      disabled={!username || !password}
      close={close}
    >
      <Field label={T.users.username}>
        <input
          name="new-username"
          autofocus
          autocomplete="off"
          value={username}
          onInput={(event) => setUsername(event.currentTarget.value)}
        />
      </Field>
      <DisplayName value={display} set={setDisplay} />
      <Field label={T.users.password} hint={T.users.passwordHint}>
        <input
          type="password"
          autocomplete="new-password"
          value={password}
          onInput={(event) => setPassword(event.currentTarget.value)}
        />
      </Field>
      <IsAdmin value={admin} set={setAdmin} />
    </Dialog>
  );
}

function DisplayName({ value, set }: { value: string; set: (value: string) => void }) {
  return (
    <Field label={T.users.display} hint={T.users.displayHint}>
      <input name="display" value={value} onInput={(event) => set(event.currentTarget.value)} />
    </Field>
  );
}

function IsAdmin({ value, set }: { value: boolean; set: (value: boolean) => void }) {
  return (
    <div class="choices">
      <label>
        <input type="checkbox" checked={value} onChange={() => set(!value)} />
        <span>{T.users.admin}</span>
      </label>
    </div>
  );
}

/** Of another user. One's own password is changed with the old one. */
function Change({ user, close, done }: About & { user: User }) {
  const [display, setDisplay] = useState(user.display_name);
  const [password, setPassword] = useState("");
  const [admin, setAdmin] = useState(user.is_admin);
  const body = {
    ...(display !== user.display_name && { display_name: display }),
    ...(password && { password }),
    ...(admin !== user.is_admin && { is_admin: admin }),
  };
  const submit = async (): Promise<void> => {
    await call("PUT", "/admin/users", { query: { id: user.user_id }, body });
    say(T.users.changed(user.username));
    done();
  };
  return (
    <Dialog
      title={T.users.changeTitle(user.username)}
      action={T.common.save}
      submit={submit}
      disabled={!Object.keys(body).length}
      close={close}
    >
      <DisplayName value={display} set={setDisplay} />
      <Field label={T.account.new} hint={T.users.newPasswordHint}>
        <input
          type="password"
          autocomplete="new-password"
          value={password}
          onInput={(event) => setPassword(event.currentTarget.value)}
        />
      </Field>
      <IsAdmin value={admin} set={setAdmin} />
      <p>{T.users.changeText}</p>
    </Dialog>
  );
}

/** A limit as people write it. Those of sizes have a unit. */
function written(name: QuotaName, limit: number): string {
  const one = SIZES[name];
  return one ? exactBytes(limit * one) : String(limit);
}

/** The limit that was typed; null for the default, NaN if it is none. */
function limitIn(name: QuotaName, text: string): number | null {
  if (!text.trim()) return null;
  const one = SIZES[name];
  if (one) return Math.round(bytesIn(text, one) / one);
  return /^\s*\d+\s*$/.test(text) ? Number(text) : NaN;
}

function Quota({ user, close }: { user: User; close: () => void }) {
  const query = { id: user.user_id };
  const found = useLoad(`quota ${user.user_id}`, (signal) =>
    get<Quotas & { changed: string[] }>("/admin/quotas", query, signal),
  );
  const [typed, setTyped] = useState<Partial<Record<QuotaName, string>>>({});
  const limits: Partial<Record<string, number | null>> = Object.fromEntries(
    Object.entries(typed).map(([name, text]) => [name, limitIn(name as QuotaName, text)]),
  );
  const hint = (name: QuotaName): string => {
    const limit = limits[name];
    if (limit === undefined || limit === null) return T.users.unchanged;
    if (Number.isNaN(limit)) return SIZES[name] ? T.users.noSize : T.users.noNumber;
    return T.users.limit(written(name, limit));
  };
  const submit = async (): Promise<void> => {
    await call("PUT", "/admin/quotas", { query, body: limits });
    say(T.users.saved);
  };
  return (
    <Dialog
      title={T.users.quotaTitle(user.username)}
      action={T.common.save}
      submit={submit}
      disabled={!Object.keys(typed).length || Object.values(limits).some(Number.isNaN)}
      close={close}
    >
      <Wait on={found}>
        {(data) => (
          <>
            {(Object.keys(T.account.quotas) as QuotaName[]).map((name) => (
              <Field
                key={name}
                label={T.account.quotas[name]}
                hint={`${T.users.usage(amount(name, data[name].used))}. ${hint(name)}.`}
              >
                <input
                  autocomplete="off"
                  placeholder={written(name, data[name].limit)}
                  value={
                    typed[name] ??
                    (data.changed.includes(name) ? written(name, data[name].limit) : "")
                  }
                  onInput={(event) => setTyped({ ...typed, [name]: event.currentTarget.value })}
                />
              </Field>
            ))}
          </>
        )}
      </Wait>
    </Dialog>
  );
}

// --- sessions -------------------------------------------------------------------------------

interface Session {
  id: string;
  user_id: string;
  username: string;
  display_name: string;
  created_at: number;
  expires_at: number;
  ip_address: string;
}

export function Sessions() {
  const me = useStore(session);
  const list = useLoad(
    "sessions",
    (signal) => get<Session[]>("/admin/sessions", {}, signal),
    15,
  );
  const end = ({ id, username, user_id }: Session): void =>
    confirm({
      title: T.sessions.endTitle(username),
      text: user_id === me?.user_id ? T.sessions.endOwn : T.sessions.endText,
      action: T.sessions.end,
      run: async () => {
        await request("DELETE", "/admin/sessions", { query: { id } });
        say(T.sessions.ended);
        list.reload();
      },
    });
  return (
    <>
      <Head title={T.sessions.title} />
      <Wait on={list}>
        {(rows) => (
          <Rows
            label={T.sessions.title}
            rows={rows}
            id={(row) => row.id}
            columns={[
              { head: T.sessions.user, names: true, cell: (row) => row.display_name || row.username },
              { head: T.sessions.address, cell: (row) => <code>{row.ip_address}</code> },
              { head: T.sessions.since, kind: "later", at: (row) => row.created_at },
              { head: T.sessions.until, kind: "later", at: (row) => row.expires_at },
              {
                cell: (row) => (
                  <Button aria-label={`${T.sessions.end}: ${row.username}`} onClick={() => end(row)}>
                    {T.sessions.end}
                  </Button>
                ),
              },
            ]}
          />
        )}
      </Wait>
    </>
  );
}
