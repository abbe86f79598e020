// Links to files for anyone who has them.
import { useState } from "preact/hooks";
import { call, get, request, useLoad } from "../api";
import { link, place } from "../router";
import { useStore } from "../store";
import { T } from "../texts";
import { Button, confirm, Copyable, Dialog, Empty, Field, Head, Rows, say, Wait } from "../ui";
import { Crumbs, inSpace, SpaceTabs, type Entry } from "./files";

interface Link {
  id: string;
  path: string;
  created_at: number;
  expires_at: number;
  inline: boolean;
}

export function Share({
  space,
  entry,
  close,
}: {
  space: string;
  entry: Entry;
  close: () => void;
}) {
  const [seconds, setSeconds] = useState(604800);
  const [inline, setInline] = useState(true);
  const [url, setUrl] = useState("");
  const submit = async (): Promise<false> => {
    const body = { path: entry.path, expires_in: seconds, inline };
    const made = await call<{ url: string }>("POST", inSpace(space, "shares"), { body });
    setUrl(new URL(made.url, location.href).href);
    return false;
  };
  if (url)
    return (
      <Dialog title={T.shares.title(entry.name)} close={close} once>
        <p class="problem warn">{T.shares.once}</p>
        <Copyable text={url} block />
      </Dialog>
    );
  return (
    <Dialog
      title={T.shares.title(entry.name)}
      action={T.shares.create}
      submit={submit}
      close={close}
    >
      <p>{T.shares.about}</p>
      <Field label={T.shares.expires}>
        <select
          value={seconds}
          onChange={(event) => setSeconds(Number(event.currentTarget.value))}
        >
          {Object.entries(T.shares.expiry).map(([value, text]) => (
            <option key={value} value={value}>
              {text}
            </option>
          ))}
        </select>
      </Field>
      <div class="choices">
        <label>
          <input type="checkbox" checked={inline} onChange={() => setInline(!inline)} />
          <span>{T.shares.inline}</span>
        </label>
      </div>
    </Dialog>
  );
}

export function Shares() {
  const { path } = useStore(place);
  const space = path[1] ?? "";
  const links = useLoad(
    `shares ${space}`,
    async (signal) =>
      (await get<{ shares: Link[] }>(inSpace(space, "shares"), {}, signal)).shares,
  );
  const revoke = (row: Link): void => {
    const run = async (): Promise<void> => {
      await request("DELETE", inSpace(space, `shares/${encodeURIComponent(row.id)}`));
      say(T.shares.revoked);
      links.reload();
    };
    confirm({
      title: T.access.revokeTitle(row.path),
      text: T.access.revokeText,
      action: T.access.revoke,
      run,
    });
  };
  return (
    <>
      <Head
        title={T.space.shares}
        crumbs={
          <Crumbs
            trail={[
              { text: T.spaces.title, to: link("files") },
              { text: space, to: link("files", space) },
            ]}
          />
        }
      />
      <SpaceTabs space={space} now="shares" />
      <Wait on={links}>
        {(rows) =>
          rows.length ? (
            <>
              <p class="about">{T.shares.about}</p>
              <Rows
                label={T.space.shares}
                rows={rows}
                id={(row) => row.id}
                columns={[
                  { head: T.common.name, kind: "wrap", cell: (row) => row.path },
                  { head: T.shares.created, at: (row) => row.created_at },
                  { head: T.shares.expires, at: (row) => row.expires_at },
                  {
                    cell: (row) => (
                      <Button
                        look="danger"
                        aria-label={`${T.access.revoke}: ${row.path}`}
                        onClick={() => revoke(row)}
                      >
                        {T.access.revoke}
                      </Button>
                    ),
                  },
                ]}
              />
            </>
          ) : (
            <Empty icon="link" title={T.shares.empty} hint={T.shares.emptyHint} />
          )
        }
      </Wait>
    </>
  );
}
