// The chunks of a file, where their replicas are, and whether these are whole.
import { useState } from "preact/hooks";
import { call, get, session, useLoad } from "../api";
import { bytes, time } from "../format";
import { T } from "../texts";
import { Badge, Button, Dialog, Problem, Rows, Wait } from "../ui";
import { inSpace, type Entry } from "./files";

/** The server reads for five minutes at the longest. */
const CHECK_MS = 310_000;

interface Replica {
  server: string;
  address: string;
  rack: string;
  state: string;
  scrub_began_at: number | null;
  scrub_ended_at: number | null;
  scrub_whole_began_at: number | null;
}

interface Chunk {
  index: number;
  handle: string;
  version: number;
  size: number;
  goal: number;
  replicas: Replica[];
}

interface Checked {
  checked_at: number;
  replicas: number;
  bytes: number;
  problems: { kind: string; index: number; server: string | null; detail: string }[];
}

/**
 * When a replica was last verified; 0: not yet, or it is damaged. A pass has not seen what was
 * written after it had begun. What the server got later by a copy was verified then.
 */
function verifiedAt(entry: Entry, chunk: Chunk, replica: Replica, checked?: Checked): number {
  const bad = checked?.problems.some(
    ({ kind, index, server }) =>
      index === chunk.index && (server === replica.server || kind === "lost"),
  );
  if (checked) return bad ? 0 : checked.checked_at;
  const { scrub_whole_began_at: began, scrub_ended_at: ended } = replica;
  return began && ended && began > entry.modified_at ? ended : 0;
}

export function Locate({
  space,
  entry,
  close,
}: {
  space: string;
  entry: Entry;
  close: () => void;
}) {
  const { path } = entry;
  // Administrators may look at the files of all.
  const any = session.value?.is_admin;
  const found = useLoad(`locate ${space} ${path}`, async (signal) => {
    const target = any ? "/admin/files/locate" : inSpace(space, "locate");
    const query = any ? { namespace: space, path } : { path };
    return (await get<{ chunks: Chunk[] }>(target, query, signal)).chunks;
  });
  const [checked, setChecked] = useState<Checked>();
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const check = async (): Promise<void> => {
    setBusy(true);
    setError(null);
    try {
      const target = any ? "/admin/files/check" : inSpace(space, "check");
      const body = any ? { namespace: space, path } : { path };
      const options = { body, ms: CHECK_MS, late: T.locate.late };
      setChecked(await call<Checked>("POST", target, options));
      found.reload();
    } catch (failure) {
      setError(failure);
    }
    setBusy(false);
  };
  return (
    <Dialog title={T.locate.title(entry.name)} close={close} wide>
      <Wait on={found}>
        {(chunks) =>
          chunks.length ? (
            <Rows
              label={T.locate.replicas}
              rows={chunks}
              id={(chunk) => chunk.handle}
              columns={[
                {
                  head: T.locate.chunk,
                  names: true,
                  cell: (chunk) => (
                    <>
                      {chunk.index} <code>{chunk.handle}</code>
                    </>
                  ),
                },
                { head: T.common.size, kind: "number", cell: (chunk) => bytes(chunk.size) },
                { head: T.locate.version, cell: (chunk) => chunk.version },
                {
                  head: T.locate.replicas,
                  kind: "wrap",
                  cell: (chunk) => (
                    <>
                      <Badge kind={chunk.replicas.length < chunk.goal ? "warn" : "good"}>
                        {T.locate.goal(chunk.replicas.length, chunk.goal)}
                      </Badge>
                      <ul>
                        {chunk.replicas.map((replica) => {
                          const at = verifiedAt(entry, chunk, replica, checked);
                          return (
                            <li key={replica.server}>
                              {replica.server} {replica.rack && `(${replica.rack})`}{" "}
                              <small>{at ? T.locate.verified(time(at)) : T.locate.unverified}</small>
                            </li>
                          );
                        })}
                      </ul>
                    </>
                  ),
                },
              ]}
            />
          ) : (
            <p>{T.locate.empty}</p>
          )
        }
      </Wait>
      {error !== null && <Problem error={error} />}
      {checked && (
        <div class={checked.problems.length ? "problem" : "problem good"} role="status">
          {checked.problems.length ? (
            <ul>
              {checked.problems.map((each, at) => (
                <li key={at}>{T.locate.problem(each.index, each.server ?? "", each.detail)}</li>
              ))}
            </ul>
          ) : (
            T.locate.well(checked.replicas, bytes(checked.bytes))
          )}
        </div>
      )}
      <p class="tools">
        <Button icon="check" disabled={busy} onClick={check}>
          {busy ? T.locate.checking : T.locate.check}
        </Button>
      </p>
    </Dialog>
  );
}
