// API tokens, keys for S3, SSH keys.
import { useState } from "preact/hooks";
import { call, get, request, session, useLoad } from "../api";
import { T } from "../texts";
import { configurations } from "../tools";
import {
  ask,
  Button,
  confirm,
  Copyable,
  Dialog,
  Empty,
  Field,
  Head,
  Rows,
  say,
  Wait,
  type IconName,
} from "../ui";
import { loadSpaces } from "./spaces";

interface Credential {
  id: string;
  name: string;
  scopes: Record<string, string[]>;
  created_at: number;
  expires_at: number;
  last_used_at: number;
  access_key_id?: string;
}

interface Made extends Credential {
  token?: string;
  secret_access_key?: string;
  endpoint?: string;
}

interface SshKey {
  id: number;
  name: string;
  public_key: string;
  fingerprint: string;
  created_at: string;
}

export const loadSshKeys = async (signal?: AbortSignal): Promise<SshKey[]> =>
  (await get<{ ssh_keys: SshKey[] }>("/compute/ssh-keys", {}, signal)).ssh_keys;

export function Access() {
  return (
    <>
      <Head title={T.access.title} about={T.access.about} />
      <Credentials
        path="/api/tokens"
        icon="key"
        title={T.access.tokens}
        about={T.access.tokensAbout}
        create={T.access.newToken}
        empty={T.access.noTokens}
        hint={T.access.noTokensHint}
      />
      <Credentials
        path="/api/s3-keys"
        icon="key"
        title={T.access.s3}
        about={T.access.s3About}
        create={T.access.newS3}
        empty={T.access.noS3}
        hint={T.access.noS3Hint}
      />
      <SshKeys />
    </>
  );
}

function rightsOf(scopes: Record<string, string[]>): string {
  return Object.entries(scopes)
    .map(([scope, actions]) => {
      // The name of a storage namespace may have dots.
      const [root, , resource, ...name] = scope.split(".");
      const parts = [root, resource, name.join(".")].filter(Boolean);
      return `${parts.join(" ")}: ${actions.join(", ")}`;
    })
    .join("; ");
}

function Credentials(about: {
  path: string;
  icon: IconName;
  title: string;
  about: string;
  create: string;
  empty: string;
  hint: string;
}) {
  const { path, icon } = about;
  const list = useLoad(path, (signal) => get<Credential[]>(path, {}, signal));
  const make = (): void =>
    ask((close) => (
      <NewCredential
        title={about.create}
        path={path}
        close={close}
        done={(made, space) => {
          list.reload();
          ask((shut) => <Secret {...{ made, space }} title={about.title} close={shut} />);
        }}
      />
    ));
  return (
    <section class="part">
      <header>
        <div>
          <h2>{about.title}</h2>
          <p class="about">{about.about}</p>
        </div>
        <Button icon="plus" onClick={make}>
          {about.create}
        </Button>
      </header>
      <Wait on={list}>
        {(rows) =>
          rows.length ? (
            <Rows
              label={about.title}
              rows={rows}
              id={(row) => row.id}
              columns={[
                {
                  head: T.common.name,
                  names: true,
                  cell: (row) => (
                    <>
                      {row.name}
                      {row.access_key_id && <code>{row.access_key_id}</code>}
                    </>
                  ),
                },
                { head: T.access.rights, kind: "wrap later", cell: (row) => rightsOf(row.scopes) },
                { head: T.access.used, kind: "later", at: (row) => row.last_used_at },
                { head: T.access.expires, at: (row) => row.expires_at },
                {
                  cell: (row) => (
                    <Button
                      look="danger"
                      aria-label={`${T.access.revoke}: ${row.name}`}
                      onClick={() => revoke(path, row.id, row.name, list.reload)}
                    >
                      {T.access.revoke}
                    </Button>
                  ),
                },
              ]}
            />
          ) : (
            <Empty icon={icon} title={about.empty} hint={about.hint} />
          )
        }
      </Wait>
    </section>
  );
}

function revoke(path: string, id: string | number, name: string, done: () => void): void {
  const run = async (): Promise<void> => {
    await request("DELETE", `${path}/${encodeURIComponent(id)}`);
    say(T.access.revoked(name));
    done();
  };
  confirm({
    title: T.access.revokeTitle(name),
    text: T.access.revokeText,
    action: T.access.revoke,
    run,
  });
}

type Right = keyof typeof T.access.right;

/** The scopes of an API token: those of the rights, in one storage namespace or all. */
function scopesFor(rights: Right[], space: string): Record<string, string[]> {
  const id = session.value?.user_id ?? "";
  const scopes: Record<string, string[]> = {};
  const within = space && `.${space}`;
  const files = [
    ...(rights.includes("read") ? ["read"] : []),
    ...(rights.includes("write") ? ["create", "delete"] : []),
  ];
  if (files.length) scopes[`storage.${id}.files${within}`] = files;
  if (rights.includes("namespaces"))
    scopes[`storage.${id}.namespaces${within}`] = ["create", "read", "update", "delete"];
  else if (files.length && !space) scopes[`storage.${id}.namespaces`] = ["read"];
  if (rights.includes("containers")) {
    scopes[`compute.${id}.containers`] = ["create", "read", "update", "delete", "start", "stop"];
    scopes[`compute.${id}.keys`] = ["create", "read", "delete"];
  }
  return scopes;
}

function NewCredential({
  title,
  path,
  close,
  done,
}: {
  title: string;
  path: string;
  close: () => void;
  done: (made: Made, space: string) => void;
}) {
  const isS3 = path.includes("s3");
  const choices = (Object.keys(T.access.right) as Right[]).filter(
    (right) => !isS3 || right !== "containers",
  );
  const [name, setName] = useState("");
  const [rights, setRights] = useState<Right[]>(isS3 ? ["read", "write", "namespaces"] : ["read"]);
  const [space, setSpace] = useState("");
  const [expires, setExpires] = useState("90d");
  const spaces = useLoad("spaces", loadSpaces);
  const mine = spaces.data?.filter(({ owner_id }) => owner_id === session.value?.user_id) ?? [];
  const submit = async (): Promise<false> => {
    const body = { name, scopes: scopesFor(rights, space), expires_in: expires };
    done(await call<Made>("POST", path, { body }), space);
    return false; // the next dialog is in this one's place
  };
  const toggle = (right: Right): void =>
    setRights(rights.includes(right) ? rights.filter((r) => r !== right) : [...rights, right]);
  return (
    <Dialog
      title={title}
      action={T.common.create}
      submit={submit}
      disabled={!name.trim() || !rights.length}
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
      <fieldset class="choices">
        <legend>{T.access.rights}</legend>
        {choices.map((right) => (
          <label key={right}>
            <input
              type="checkbox"
              checked={rights.includes(right)}
              onChange={() => toggle(right)}
            />
            <span>{T.access.right[right]}</span>
          </label>
        ))}
      </fieldset>
      <Field label={T.access.within}>
        <select value={space} onChange={(event) => setSpace(event.currentTarget.value)}>
          <option value="">{T.access.everywhere}</option>
          {mine.map((each) => (
            <option key={each.name}>{each.name}</option>
          ))}
        </select>
      </Field>
      <Field label={T.access.expires}>
        <select value={expires} onChange={(event) => setExpires(event.currentTarget.value)}>
          {Object.entries(T.access.expiry).map(([value, text]) => (
            <option key={value} value={value}>
              {text}
            </option>
          ))}
        </select>
      </Field>
    </Dialog>
  );
}

function Secret({
  made,
  space,
  title,
  close,
}: {
  made: Made;
  space: string;
  title: string;
  close: () => void;
}) {
  const guess = `${location.protocol}//${location.hostname}:9000`;
  const [endpoint, setEndpoint] = useState(made.endpoint || guess);
  const [tool, setTool] = useState("awscli");
  const curl = `curl -H "Authorization: Bearer ${made.token}" ${location.origin}/api/session`;
  const s3 =
    made.access_key_id && made.secret_access_key
      ? configurations(endpoint, made.access_key_id, made.secret_access_key, space)
      : null;
  return (
    <Dialog title={`${title}: ${made.name}`} close={close} wide once>
      <p class="problem warn">{T.access.once}</p>
      {made.token && <Copyable text={made.token} block />}
      {s3 ? (
        <>
          <dl class="facts">
            <dt>{T.access.keyId}</dt>
            <dd>
              <Copyable text={made.access_key_id ?? ""} />
            </dd>
            <dt>{T.access.secret}</dt>
            <dd>
              <Copyable text={made.secret_access_key ?? ""} />
            </dd>
          </dl>
          <h3>{T.access.ready}</h3>
          <Field label={T.access.endpoint} hint={T.access.endpointHint}>
            <input
              name="endpoint"
              value={endpoint}
              onInput={(event) => setEndpoint(event.currentTarget.value)}
            />
          </Field>
          <div class="tabs" role="group" aria-label={T.access.ready}>
            {Object.keys(s3).map((name) => (
              <button
                type="button"
                key={name}
                aria-pressed={name === tool}
                onClick={() => setTool(name)}
              >
                {name}
              </button>
            ))}
          </div>
          <Copyable text={s3[tool] ?? ""} block />
        </>
      ) : (
        <Copyable text={curl} block />
      )}
    </Dialog>
  );
}

function SshKeys() {
  const keys = useLoad("ssh-keys", loadSshKeys);
  const make = (): void => ask((close) => <NewSshKey close={close} done={keys.reload} />);
  return (
    <section class="part">
      <header>
        <div>
          <h2>{T.access.ssh}</h2>
          <p class="about">{T.access.sshAbout}</p>
        </div>
        <Button icon="plus" onClick={make}>
          {T.access.newSsh}
        </Button>
      </header>
      <Wait on={keys}>
        {(rows) =>
          rows.length ? (
            <Rows
              label={T.access.ssh}
              rows={rows}
              id={(row) => row.id}
              columns={[
                { head: T.common.name, names: true, cell: (row) => row.name },
                { head: T.access.fingerprint, kind: "wrap", cell: (row) => <code>{row.fingerprint}</code> },
                {
                  cell: (row) => (
                    <Button
                      look="danger"
                      aria-label={`${T.access.revoke}: ${row.name}`}
                      onClick={() => revoke("/compute/ssh-keys", row.id, row.name, keys.reload)}
                    >
                      {T.access.revoke}
                    </Button>
                  ),
                },
              ]}
            />
          ) : (
            <Empty icon="key" title={T.access.noSsh} hint={T.access.noSshHint} />
          )
        }
      </Wait>
    </section>
  );
}

export function NewSshKey({
  why,
  close,
  done,
}: {
  /** Why one is asked for. */
  why?: string;
  close: () => void;
  /** With false it is for the caller to go on. */
  done: () => unknown;
}) {
  const [name, setName] = useState("");
  const [key, setKey] = useState("");
  const submit = async (): Promise<unknown> => {
    const body = { name: name || (key.trim().split(/\s+/)[2] ?? "key"), public_key: key.trim() };
    await call("POST", "/compute/ssh-keys", { body });
    return done();
  };
  return (
    <Dialog
      title={T.access.newSsh}
      action={T.common.save}
      submit={submit}
      disabled={!key.trim()}
      close={close}
    >
      {why && <p>{why}</p>}
      <Field label={T.access.publicKey} hint={T.access.publicKeyHint}>
        <textarea
          name="key"
          autofocus
          spellcheck={false}
          value={key}
          onInput={(event) => setKey(event.currentTarget.value)}
        />
      </Field>
      <Field label={T.common.name}>
        <input
          name="name"
          maxLength={64}
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
        />
      </Field>
    </Dialog>
  );
}
