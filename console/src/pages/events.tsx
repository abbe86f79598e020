import { useEffect, useState } from "preact/hooks";
import { get, message, useLoad } from "../api";
import { T } from "../texts";
import { Badge, Button, Empty, Head, Rows, say, Wait } from "../ui";

interface Event {
  id: string;
  at: number;
  kind: string;
  level: string;
  text: string;
  server?: string;
}

interface Page {
  events: Event[];
  next: string | null;
}

const KINDS: Record<string, string> = { warning: "bad", error: "bad", note: "warn" };

export function Events() {
  const first = useLoad("events", (signal) => get<Page>("/admin/cluster/events", {}, signal), 5);
  const [more, setMore] = useState<Page>();
  const last = first.data?.events.at(-1)?.id;
  // New events move older ones to the next page.
  useEffect(() => setMore(undefined), [last]);
  const next = more ? more.next : first.data?.next;
  const read = async (): Promise<void> => {
    try {
      const page = await get<Page>("/admin/cluster/events", { before: next ?? undefined });
      setMore({ ...page, events: [...(more?.events ?? []), ...page.events] });
    } catch (error) {
      say(message(error), true);
    }
  };
  return (
    <>
      <Head title={T.events.title} about={T.events.about} />
      <Wait on={first}>
        {({ events }) =>
          events.length ? (
            <>
              <Rows
                label={T.events.title}
                rows={[...events, ...(more?.events ?? [])]}
                id={(each) => each.id}
                columns={[
                  { head: T.events.when, at: (each) => each.at },
                  {
                    head: T.events.what,
                    kind: "wrap",
                    cell: ({ level, kind, text }) => (
                      <>
                        <Badge kind={KINDS[level] ?? ""}>{kind.replace(/_/g, " ")}</Badge> {text}
                      </>
                    ),
                  },
                ]}
              />
              {next && <Button onClick={read}>{T.common.more}</Button>}
            </>
          ) : (
            <Empty icon="clock" title={T.events.empty} hint={T.events.emptyHint} />
          )
        }
      </Wait>
    </>
  );
}
