import { useState } from "preact/hooks";
import { call, get, session, useLoad, type Session } from "../api";
import { number } from "../format";
import { link } from "../router";
import { useStore } from "../store";
import { T } from "../texts";
import { ask, Badge, Button, Dialog, Empty, Field, Head, Icon, Menu, Rows, say, Wait } from "../ui";

export interface Space {
  name: string;
  count: number;
  hidden: boolean;
  visibility: number;
  owner_id: string | null;
}

let last: { user: Session | null; list: Space[] } | undefined;

/** Those that are public or the user's own; for administrators all that there are. */
export async function loadSpaces(signal: AbortSignal): Promise<Space[]> {
  const user = session.value;
  const path = user?.is_admin ? "/admin/namespaces" : "/storage/namespaces";
  const list = await get<Space[]>(path, {}, signal);
  last = { user, list };
  return list;
}

/** Those that this user was told of last: a page that depends on them does not jump. */
export const lastSpaces = (): Space[] | undefined =>
  last?.user === session.value ? last?.list : undefined;

/** Whether it is the user's to change. What has no owner is the administrators'. */
export function owns(user: Session | null, space: Space | undefined): boolean {
  if (!user || !space) return false;
  return space.owner_id ? space.owner_id === user.user_id : user.is_admin;
}

/** Whether the user knows of it only as an administrator, and cannot read its files. */
export const isClosed = (user: Session | null, space: Space): boolean =>
  Boolean(user?.is_admin) && space.visibility === 0 && !owns(user, space);

const path = (name: string): string => `/storage/namespaces/${encodeURIComponent(name)}`;

export function Spaces() {
  const user = useStore(session);
  const spaces = useLoad("spaces", loadSpaces, 15);
  const create = (): void =>
    ask((close) => <NewSpace close={close} done={spaces.reload} />);
  return (
    <>
      <Head title={T.spaces.title} about={T.spaces.about}>
        <Button icon="plus" look="main" onClick={create}>
          {T.spaces.create}
        </Button>
      </Head>
      <Wait on={spaces}>
        {(all) => {
          const list = all.filter((space) => !isClosed(user, space));
          return list.length ? (
            <div class="cards">
              {list.map((space) => {
                const mine = space.owner_id === user?.user_id;
                return (
                  <article class="card" key={space.name}>
                    <a class="main" href={link("files", space.name)}>
                      <Icon name="folder" />
                      <h2>{space.name}</h2>
                      <p>{T.spaces.files(space.count)}</p>
                    </a>
                    <div class="more">
                      <Badge kind={["", "info", "warn"][space.visibility] ?? ""}>
                        {T.spaces.visibilities[space.visibility]}
                      </Badge>
                      <span>
                        {mine
                          ? T.spaces.yours
                          : space.owner_id
                            ? T.spaces.others
                            : space.name === "default"
                              ? T.spaces.shared
                              : T.spaces.ownerless}
                      </span>
                      {owns(user, space) && space.name !== "default" && (
                        <Menu
                          label={`${T.common.actions}: ${space.name}`}
                          items={[
                            {
                              text: T.spaces.settings,
                              icon: "users",
                              run: () =>
                                ask((close) => (
                                  <Change space={space} close={close} done={spaces.reload} />
                                )),
                            },
                            {
                              text: T.spaces.remove,
                              icon: "trash",
                              danger: true,
                              run: () =>
                                ask((close) => (
                                  <Remove space={space} close={close} done={spaces.reload} />
                                )),
                            },
                          ]}
                        />
                      )}
                    </div>
                  </article>
                );
              })}
            </div>
          ) : (
            <Empty icon="folder" title={T.spaces.empty} hint={T.spaces.emptyHint} />
          );
        }}
      </Wait>
      {user?.is_admin && (
        <Closed list={spaces.data?.filter((space) => isClosed(user, space)) ?? []} />
      )}
    </>
  );
}

/** Private ones of other users, for administrators. */
function Closed({ list }: { list: Space[] }) {
  const users = useLoad("owners", (signal) =>
    get<{ user_id: string; username: string }[]>("/admin/users", {}, signal),
  );
  if (!list.length) return null;
  const owner = ({ owner_id }: Space) =>
    users.data?.find(({ user_id }) => user_id === owner_id)?.username ?? owner_id;
  return (
    <section class="part">
      <header>
        <div>
          <h2>{T.spaces.closed}</h2>
          <p class="about">{T.spaces.closedAbout}</p>
        </div>
      </header>
      <Rows
        label={T.spaces.closed}
        rows={list}
        id={(space) => space.name}
        columns={[
          {
            head: T.common.name,
            names: true,
            cell: (space) => <a href={link("files", space.name)}>{space.name}</a>,
          },
          { head: T.spaces.owner, cell: owner },
          { head: T.spaces.title, kind: "number", cell: (space) => number(space.count) },
        ]}
      />
    </section>
  );
}

interface About {
  close: () => void;
  done: () => void;
}

function Visibility({ value, change }: { value: number; change: (value: number) => void }) {
  return (
    <fieldset class="choices">
      <legend>{T.spaces.visibility}</legend>
      {T.spaces.visibilities.map((text, index) => (
        <label key={text}>
          <input
            type="radio"
            name="visibility"
            checked={index === value}
            onChange={() => change(index)}
          />
          <span>
            {text}
            <small>{T.spaces.visibilityHints[index]}</small>
          </span>
        </label>
      ))}
    </fieldset>
  );
}

function NewSpace({ close, done }: About) {
  const [name, setName] = useState("");
  const [visibility, setVisibility] = useState(0);
  const submit = async (): Promise<void> => {
    await call("POST", "/storage/namespaces", { body: { name, visibility } });
    done();
  };
  return (
    <Dialog
      title={T.spaces.create}
      action={T.common.create}
      submit={submit}
      disabled={!name}
      close={close}
    >
      <Field label={T.common.name} hint={T.spaces.nameHint}>
        <input
          name="name"
          autofocus
          required
          maxLength={64}
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
        />
      </Field>
      <Visibility value={visibility} change={setVisibility} />
    </Dialog>
  );
}

function Change({ space, close, done }: About & { space: Space }) {
  const [visibility, setVisibility] = useState(space.visibility);
  const submit = async (): Promise<void> => {
    await call("PUT", path(space.name), { body: { visibility } });
    done();
  };
  return (
    <Dialog
      title={T.spaces.change(space.name)}
      action={T.common.save}
      submit={submit}
      close={close}
    >
      <Visibility value={visibility} change={setVisibility} />
    </Dialog>
  );
}

function Remove({ space, close, done }: About & { space: Space }) {
  const [typed, setTyped] = useState("");
  const submit = async (): Promise<void> => {
    await call("DELETE", path(space.name));
    say(T.spaces.removed(space.name));
    done();
  };
  return (
    <Dialog
      title={T.spaces.removeTitle(space.name)}
      action={T.common.remove}
      look="danger"
      submit={submit}
      disabled={typed !== space.name}
      close={close}
    >
      <p>{T.spaces.removeText(space.name, space.count)}</p>
      <Field label={T.spaces.confirm}>
        <input
          name="confirm"
          autofocus
          autocomplete="off"
          value={typed}
          onInput={(event) => setTyped(event.currentTarget.value)}
        />
      </Field>
    </Dialog>
  );
}
