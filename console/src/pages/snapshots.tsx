// Snapshots of a storage namespace: what a folder was, to be looked at and restored from.
import { useState } from "preact/hooks";
import { call, get, request, useLoad } from "../api";
import { number } from "../format";
import { link, place } from "../router";
import { useStore } from "../store";
import { T } from "../texts";
import { ask, Button, Dialog, Empty, Field, Head, Rows, say, Trouble, Wait } from "../ui";
import { Crumbs, download, folderTrail, inSpace, join, SpaceTabs, Table, useEntries } from "./files";

interface Snapshot {
  id: string;
  name: string;
  folder: string;
  created_at: number;
  files: number;
  size: number;
}

const snapshot = (space: string, id: string, rest = ""): string =>
  inSpace(space, `snapshots/${encodeURIComponent(id)}${rest}`);

function useSnapshots(space: string) {
  return useLoad(`snapshots ${space}`, async (signal) =>
    (await get<{ snapshots: Snapshot[] }>(inSpace(space, "snapshots"), {}, signal)).snapshots,
  );
}

export function Snapshots() {
  const { path } = useStore(place);
  const [, space = "", id = ""] = path;
  return id ? <One space={space} id={id} folder={path.slice(3).join("/")} /> : <All {...{ space }} />;
}

function All({ space }: { space: string }) {
  const list = useSnapshots(space);
  const make = (): void => ask((close) => <Make {...{ space, close }} done={list.reload} />);
  const remove = (row: Snapshot): void => {
    const submit = async (): Promise<void> => {
      await request("DELETE", snapshot(space, row.id));
      say(T.snapshots.removed(row.name));
      list.reload();
    };
    ask((close) => (
      <Dialog
        title={T.snapshots.removeTitle(row.name)}
        action={T.common.remove}
        look="danger"
        submit={submit}
        close={close}
      >
        <p>{T.snapshots.removeText}</p>
      </Dialog>
    ));
  };
  return (
    <>
      <Head
        title={T.space.snapshots}
        crumbs={
          <Crumbs
            trail={[
              { text: T.spaces.title, to: link("files") },
              { text: space, to: link("files", space) },
            ]}
          />
        }
      >
        <Button icon="camera" look="main" onClick={make}>
          {T.snapshots.create}
        </Button>
      </Head>
      <SpaceTabs space={space} now="snapshots" />
      <Wait on={list}>
        {(rows) =>
          rows.length ? (
            <Rows
              label={T.space.snapshots}
              rows={rows}
              id={(row) => row.id}
              columns={[
                {
                  head: T.common.name,
                  names: true,
                  cell: (row) => <a href={link("snapshots", space, row.id)}>{row.name}</a>,
                },
                {
                  head: T.snapshots.folder,
                  kind: "wrap later",
                  cell: (row) => row.folder || T.snapshots.whole,
                },
                { head: T.snapshots.created, at: (row) => row.created_at },
                {
                  head: T.snapshots.files,
                  kind: "number later",
                  cell: (row) => (row.files < 0 ? "…" : number(row.files)),
                },
                {
                  cell: (row) => (
                    <>
                      <Button
                        aria-label={`${T.snapshots.restore}: ${row.name}`}
                        onClick={() =>
                          ask((close) => (
                            <Restore {...{ space, close }} id={row.id} path="" into={row.folder} />
                          ))
                        }
                      >
                        {T.snapshots.restore}
                      </Button>{" "}
                      <Button
                        icon="trash"
                        look="quiet"
                        label={`${T.common.remove}: ${row.name}`}
                        onClick={() => remove(row)}
                      />
                    </>
                  ),
                },
              ]}
            />
          ) : (
            <Empty icon="camera" title={T.snapshots.empty} hint={T.snapshots.emptyHint} />
          )
        }
      </Wait>
    </>
  );
}

function One({ space, id, folder }: { space: string; id: string; folder: string }) {
  const { query } = useStore(place);
  const sort = query.get("sort") ?? "name";
  const order = query.get("order") ?? "asc";
  const about = useSnapshots(space).data?.find((each) => each.id === id);
  const base = snapshot(space, id, "/entries");
  const entries = useEntries(base, folder, { sort, order, match: "" });
  const { data: list, isOld, hasMore, more } = entries;
  const to = (path: string[]): string => link("snapshots", space, id, ...path);
  const restore = (path: string): void =>
    ask((close) => (
      <Restore {...{ space, id, path, close }} into={join(about?.folder ?? "", path)} />
    ));
  return (
    <>
      <Head
        title={about?.name ?? id}
        crumbs={
          <Crumbs
            trail={[
              { text: space, to: link("files", space) },
              { text: T.space.snapshots, to: link("snapshots", space) },
              { text: about?.name ?? id, to: to([]) },
              ...folderTrail(folder, to),
            ]}
          />
        }
      >
        <Button onClick={() => restore(folder)}>{T.snapshots.restore}</Button>
      </Head>
      <Trouble on={entries} />
      {list && entries.isLarge && <p class="about">{T.files.large}</p>}
      {list?.length === 0 && (
        <Empty icon="folder" title={T.snapshots.none} hint={T.snapshots.noneHint} />
      )}
      {list && list.length > 0 && (
        <div class="files">
          <Table
            {...{ to, list, isOld, hasMore, more }}
            sort={entries.by.sort}
            order={entries.by.order}
            open={(entry) => download(space, entry.path, id)}
            items={(entry) => [
              entry.kind === "file" && {
                text: T.files.download,
                icon: "download",
                run: () => download(space, entry.path, id),
              },
              { text: T.snapshots.restore, run: () => restore(entry.path) },
            ]}
          />
        </div>
      )}
    </>
  );
}

function Make({ space, close, done }: { space: string; close: () => void; done: () => void }) {
  const [name, setName] = useState(() => new Date().toISOString().slice(0, 16).replace("T", " "));
  const [folder, setFolder] = useState("");
  const submit = async (): Promise<void> => {
    const body = { name, folder: folder.replace(/^\/+|\/+$/g, "") };
    const made = await call<Snapshot>("POST", inSpace(space, "snapshots"), { body });
    say(T.snapshots.made(made.name));
    done();
  };
  return (
    <Dialog
      title={T.snapshots.create}
      action={T.common.create}
      submit={submit}
      disabled={!name.trim()}
      close={close}
    >
      <Field label={T.common.name}>
        <input
          name="name"
          autofocus
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
        />
      </Field>
      <Field label={T.snapshots.folder} hint={T.snapshots.folderHint}>
        <input
          name="folder"
          value={folder}
          onInput={(event) => setFolder(event.currentTarget.value)}
        />
      </Field>
    </Dialog>
  );
}

function Restore({
  space,
  id,
  path,
  into,
  close,
}: {
  space: string;
  id: string;
  /** Within the snapshot; "" is all of it. */
  path: string;
  into: string;
  close: () => void;
}) {
  const [target, setTarget] = useState(into ? T.trash.beside(into) : T.snapshots.restoredFolder);
  const [overwrite, setOverwrite] = useState(false);
  const submit = async (): Promise<void> => {
    const body = { path, target, overwrite };
    await call("POST", snapshot(space, id, "/restore"), { body });
    say(T.snapshots.restored);
  };
  return (
    <Dialog
      title={T.snapshots.restoreTitle(path)}
      action={T.snapshots.restore.replace("…", "")}
      submit={submit}
      disabled={!target}
      close={close}
    >
      <Field label={T.snapshots.target} hint={T.snapshots.targetHint}>
        <input
          name="target"
          autofocus
          value={target}
          onInput={(event) => setTarget(event.currentTarget.value)}
        />
      </Field>
      <div class="choices">
        <label>
          <input type="checkbox" checked={overwrite} onChange={() => setOverwrite(!overwrite)} />
          <span>{T.snapshots.overwrite}</span>
        </label>
      </div>
    </Dialog>
  );
}
