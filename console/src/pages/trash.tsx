// What was deleted in a storage namespace, and can be restored.
import { useRef, useState } from "preact/hooks";
import { call, Failure, get, message, request, usePages } from "../api";
import { bytes, duration } from "../format";
import { link, place } from "../router";
import { useStore } from "../store";
import { T } from "../texts";
import { ask, Button, Dialog, Empty, Field, Head, Icon, Rows, say, Wait } from "../ui";
import { Crumbs, inSpace, SpaceTabs } from "./files";

interface Row {
  id: string;
  kind: "folder" | "file";
  name: string;
  path: string;
  size: number;
  files: number;
  deleted_at: number;
  until: number;
}

/** Each page reads the whole trash, so it is a large one. */
const WHOLE_MAX = 10_000;

interface Listing {
  entries: Row[];
  next: string | null;
  kept_seconds: number;
}

export function Trash() {
  const { path } = useStore(place);
  const space = path[1] ?? "";
  /** The storage namespace of which the server has refused another order: there is too much. */
  const refused = useRef("");
  const load = async (limit: number, after: string | undefined, signal: AbortSignal) => {
    const isByPath = refused.current === space;
    const query = { limit, after, ...(isByPath && { sort: "path", order: "asc" }) };
    try {
      const target = inSpace(space, "trash");
      const { entries: rows, ...rest } = await get<Listing>(target, query, signal);
      return { rows, isByPath, ...rest };
    } catch (error) {
      // By the second page of another order it cannot go on by path.
      if (isByPath || after || !(error instanceof Failure) || error.status !== 400) throw error;
      refused.current = space;
      return load(limit, after, signal);
    }
  };
  const list = usePages(`trash ${space}`, load, 0, WHOLE_MAX);
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const [busy, setBusy] = useState(false);
  const restore = async (row: Row): Promise<void> => {
    try {
      say(T.trash.restored(await undelete(space, row, "")));
      list.reload();
    } catch (error) {
      if (error instanceof Failure && error.status === 409)
        ask((close) => <RestoreAs {...{ space, row, close }} done={list.reload} />);
      else say(message(error), true);
    }
  };
  const toggle = ({ id }: Row): void => {
    const changed = new Set(selected);
    if (!changed.delete(id)) changed.add(id);
    setSelected(changed);
  };
  /** One after the other. What cannot be restored does not keep the others from it. */
  const restoreAll = async (rows: Row[]): Promise<void> => {
    setBusy(true);
    const failures: string[] = [];
    let restored = 0;
    for (const row of rows)
      try {
        await undelete(space, row, "");
        restored += 1;
      } catch (error) {
        failures.push(T.trash.stays(row.path, message(error)));
        if (!(error instanceof Failure) || error.isAway) break;
      }
    setBusy(false);
    setSelected(new Set());
    if (!failures.length) say(T.trash.restoredAll(rows.length));
    else say([T.trash.restoredSome(restored, rows.length), failures[0]].join(" "), true);
    list.reload();
  };
  return (
    <>
      <Head
        title={T.space.trash}
        crumbs={
          <Crumbs
            trail={[
              { text: T.spaces.title, to: link("files") },
              { text: space, to: link("files", space) },
            ]}
          />
        }
      />
      <SpaceTabs space={space} now="trash" />
      <Wait on={list}>
        {({ rows, next, isByPath, kept_seconds }) => {
          if (!rows.length)
            return <Empty icon="trash" title={T.trash.empty} hint={T.trash.emptyHint} />;
          const chosen = rows.filter(({ id }) => selected.has(id));
          const all = chosen.length === rows.length;
          return (
            <>
              <p class="about">{T.trash.about(duration(kept_seconds))}</p>
              {isByPath && <p class="about">{T.trash.large}</p>}
              <div class="filter">
                <Button onClick={() => setSelected(new Set(all ? [] : rows.map(({ id }) => id)))}>
                  {all ? T.files.clear : T.files.selectAll}
                </Button>
                <strong>{T.files.selected(chosen.length)}</strong>
                <Button
                  look="main"
                  disabled={!chosen.length || busy}
                  onClick={() => void restoreAll(chosen)}
                >
                  {T.trash.restoreChosen}
                </Button>
              </div>
              <Rows
                label={T.space.trash}
                rows={rows}
                id={(row) => row.id}
                columns={[
                  {
                    kind: "check",
                    cell: (row) => (
                      <input
                        type="checkbox"
                        aria-label={T.files.select(row.path)}
                        checked={selected.has(row.id)}
                        onChange={() => toggle(row)}
                      />
                    ),
                  },
                  {
                    head: T.trash.path,
                    kind: "wrap",
                    cell: (row) => (
                      <span class="name">
                        <Icon name={row.kind} /> {row.path}
                      </span>
                    ),
                  },
                  {
                    head: T.common.size,
                    kind: "number later",
                    cell: (row) => (row.size < 0 ? "…" : bytes(row.size)),
                  },
                  { head: T.trash.deleted, at: (row) => row.deleted_at },
                  { head: T.trash.until, kind: "later", at: (row) => row.until },
                  {
                    cell: (row) => (
                      <>
                        <Button
                          onClick={() => void restore(row)}
                          aria-label={`${T.trash.restore}: ${row.path}`}
                        >
                          {T.trash.restore}
                        </Button>{" "}
                        <Button
                          icon="trash"
                          look="quiet"
                          label={`${T.trash.purge}: ${row.path}`}
                          onClick={() =>
                            ask((close) => <Purge {...{ space, row, close }} done={list.reload} />)
                          }
                        />
                      </>
                    ),
                  },
                ]}
              />
              {next && <Button onClick={list.more}>{T.common.more}</Button>}
            </>
          );
        }}
      </Wait>
    </>
  );
}

/** Returns where it is now. */
async function undelete(space: string, { path, id }: Row, target: string): Promise<string> {
  const body = { path, id, ...(target ? { target } : {}) };
  return (await call<{ path: string }>("POST", inSpace(space, "undelete"), { body })).path;
}

interface About {
  space: string;
  row: Row;
  close: () => void;
  done: () => void;
}

function RestoreAs({ space, row, close, done }: About) {
  const [, before = "", ending = ""] = /^(.*?[^/])(\.[^./]*)?$/s.exec(row.path) ?? [];
  const [target, setTarget] = useState(
    row.kind === "file" ? T.trash.beside(before) + ending : T.trash.beside(row.path),
  );
  const submit = async (): Promise<void> => {
    say(T.trash.restored(await undelete(space, row, target)));
    done();
  };
  return (
    <Dialog
      title={T.trash.restoreAs(row.path)}
      action={T.trash.restore}
      submit={submit}
      disabled={!target}
      close={close}
    >
      <p>{T.trash.exists}</p>
      <Field label={T.trash.target}>
        <input
          name="target"
          autofocus
          value={target}
          onInput={(event) => setTarget(event.currentTarget.value)}
        />
      </Field>
    </Dialog>
  );
}

function Purge({ space, row, close, done }: About) {
  const submit = async (): Promise<void> => {
    await request("DELETE", inSpace(space, "trash"), { query: { path: row.path, id: row.id } });
    say(T.trash.purged(row.path));
    done();
  };
  return (
    <Dialog
      title={T.trash.purgeTitle}
      action={T.trash.purge}
      look="danger"
      submit={submit}
      close={close}
    >
      <p>{T.trash.purgeText(row.path)}</p>
    </Dialog>
  );
}
