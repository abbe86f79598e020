// A folder of a storage namespace; or, of one that is private to another user, where its files are.
import { useEffect, useRef, useState } from "preact/hooks";
import { get, message, session, useLoad } from "../api";
import { bytes } from "../format";
import { link, place } from "../router";
import { useStore } from "../store";
import { T } from "../texts";
import { ask, Button, Empty, Head, Rows, say, Wait } from "../ui";
import { Crumbs, Files, type Entry } from "./files";
import { Locate } from "./locate";
import { isClosed, lastSpaces, loadSpaces } from "./spaces";

/** In a page. */
const FILES = 500;

export function Folder() {
  const user = useStore(session);
  const { path } = useStore(place);
  const loaded = useLoad("spaces", loadSpaces);
  const spaces = { ...loaded, data: loaded.data ?? lastSpaces() };
  const space = spaces.data?.find(({ name }) => name === path[1]);
  // Only an administrator knows of some that cannot be read.
  if (user?.is_admin && !spaces.data && !spaces.error)
    return <p class="loading">{T.common.loading}</p>;
  if (space && isClosed(user, space)) return <Closed key={space.name} space={space.name} />;
  return <Files spaces={spaces} />;
}

function Closed({ space }: { space: string }) {
  const [typed, setTyped] = useState("");
  const [prefix, setPrefix] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => setPrefix(typed), 250);
    return () => clearTimeout(timer);
  }, [typed]);
  const read = async (after: string, signal?: AbortSignal) => {
    // One more tells whether there are more.
    const query = { namespace: space, prefix, after, limit: FILES + 1 };
    const found = await get<Entry[]>("/admin/files", query, signal);
    return { rows: found.slice(0, FILES), hasMore: found.length > FILES };
  };
  const files = useLoad(`files ${space} ${prefix}`, (signal) => read("", signal));
  const shown = useRef(files.data);
  shown.current = files.data;
  const more = async (): Promise<void> => {
    const before = files.data;
    try {
      const page = await read(before?.rows.at(-1)?.path ?? "");
      // Not if they are others by now.
      if (before && shown.current === before)
        files.change({ ...page, rows: [...before.rows, ...page.rows] });
    } catch (error) {
      say(message(error), true);
    }
  };
  const trail = [
    { text: T.spaces.title, to: link("files") },
    { text: space, to: link("files", space) },
  ];
  return (
    <>
      <Head title={space} crumbs={<Crumbs trail={trail} />} />
      <p class="about">{T.spaces.closedAbout}</p>
      <div class="filter">
        <input
          type="search"
          aria-label={T.spaces.prefix}
          placeholder={T.spaces.prefix}
          value={typed}
          onInput={(event) => setTyped(event.currentTarget.value)}
        />
      </div>
      <Wait on={files}>
        {({ rows, hasMore }) =>
          rows.length ? (
            <>
              <Rows
                label={space}
                rows={rows}
                id={(row) => row.path}
                columns={[
                  { head: T.common.name, kind: "wrap", cell: (row) => row.path },
                  { head: T.common.size, kind: "number", cell: (row) => bytes(row.size) },
                  { head: T.files.modified, kind: "later", at: (row) => row.modified_at },
                  {
                    cell: (entry) => (
                      <Button
                        icon="disk"
                        look="quiet"
                        label={`${T.files.locate}: ${entry.path}`}
                        onClick={() => ask((close) => <Locate {...{ space, entry, close }} />)}
                      />
                    ),
                  },
                ]}
              />
              {hasMore && <Button onClick={more}>{T.common.more}</Button>}
            </>
          ) : (
            <Empty
              icon="folder"
              title={prefix ? T.spaces.noFiles : T.files.empty}
              hint={prefix ? T.spaces.noFilesHint : T.spaces.noneHint}
            />
          )
        }
      </Wait>
    </>
  );
}
