import { get, usePages } from "../api";
import { T } from "../texts";
import { Badge, Button, Empty, Head, Rows, Wait } from "../ui";

interface Event {
  id: string;
  at: number;
  kind: string;
  level: string;
  text: string;
  server?: string;
}

const KINDS: Record<string, string> = { warning: "bad", error: "bad", note: "warn" };

export function Events() {
  const load = async (limit: number, before: string | undefined, signal: AbortSignal) => {
    const query = { limit, before };
    const { events: rows, next } = await get<{ events: Event[]; next: string | null }>(
      "/admin/cluster/events",
      query,
      signal,
    );
    return { rows, next };
  };
  const list = usePages("events", load, 5);
  return (
    <>
      <Head title={T.events.title} about={T.events.about} />
      <Wait on={list}>
        {({ rows, next }) =>
          rows.length ? (
            <>
              <Rows
                label={T.events.title}
                rows={rows}
                id={(each) => each.id}
                columns={[
                  { head: T.events.when, at: (each) => each.at },
                  {
                    head: T.events.what,
                    kind: "wrap",
                    cell: ({ level, kind, text }) => (
                      <>
                        <Badge kind={KINDS[level] ?? ""}>{T.events.kinds[kind] ?? kind}</Badge> {text}
                      </>
                    ),
                  },
                ]}
              />
              {next && <Button onClick={list.more}>{T.common.more}</Button>}
            </>
          ) : (
            <Empty icon="clock" title={T.events.empty} hint={T.events.emptyHint} />
          )
        }
      </Wait>
    </>
  );
}
