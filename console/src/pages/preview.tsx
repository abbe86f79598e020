// A file, shown without ever being part of this page: a picture or a film is only decoded, a text
// is only text, and a PDF is in the frame of the browser's own viewer.
import { useEffect, useState } from "preact/hooks";
import { call, encoded, request } from "../api";
import { bytes } from "../format";
import { T } from "../texts";
import { Button, Dialog, Problem } from "../ui";
import { download, inSpace, ticketed, type Entry } from "./files";

const TEXT_BYTES_MAX = 512 * 1024;
const IMAGE_BYTES_MAX = 64 * 1024 * 1024;

const KINDS: Record<string, string[]> = {
  image: "png jpg jpeg gif webp avif svg ico bmp".split(" "),
  audio: "mp3 ogg oga opus wav flac m4a weba".split(" "),
  video: "mp4 webm ogv m4v mov".split(" "),
  pdf: ["pdf"],
  text: (
    "txt md log csv tsv json jsonl xml html htm css js mjs ts tsx jsx py rs go c h cc cpp hpp java " +
    "rb sh bash toml yaml yml ini cfg conf sql rst tex diff patch env lock mk service"
  ).split(" "),
};

function kindOf(name: string): string {
  const extension = name.includes(".") ? (name.split(".").pop() ?? "").toLowerCase() : "";
  const found = Object.entries(KINDS).find(([, extensions]) => extensions.includes(extension));
  return found?.[0] ?? (extension ? "" : "text");
}

export const canPreview = (name: string): boolean => kindOf(name) !== "";

export function Preview({
  space,
  entry,
  isOwn,
  close,
}: {
  space: string;
  entry: Entry;
  /** Whether the user may make a link to it; if not, everybody may read it. */
  isOwn: boolean;
  close: () => void;
}) {
  const kind = kindOf(entry.name);
  const source = `/storage/${encodeURIComponent(space)}/${encoded(entry.path)}`;
  return (
    <Dialog title={entry.name} close={close} wide>
      <div class={`preview ${kind}`}>
        {kind === "image" && entry.size <= IMAGE_BYTES_MAX && <Picture source={source} {...entry} />}
        {kind === "text" && <Text source={source} size={entry.size} />}
        {(kind === "audio" || kind === "video") && (
          <Film {...{ kind, space, source }} path={entry.path} />
        )}
        {kind === "pdf" && <Pdf {...{ space, source, isOwn }} path={entry.path} />}
        {(!kind || (kind === "image" && entry.size > IMAGE_BYTES_MAX)) && <p>{T.preview.none}</p>}
      </div>
      <p class="tools">
        <span>{bytes(entry.size)}</span>
        <Button icon="download" onClick={() => download(space, entry.path)}>
          {T.files.download}
        </Button>
      </p>
    </Dialog>
  );
}

function Picture({ source, name }: { source: string; name: string }) {
  const [url, setUrl] = useState("");
  const [error, setError] = useState<unknown>(null);
  useEffect(() => {
    let made = "";
    const ending = new AbortController();
    request("GET", source, { signal: ending.signal })
      .then((answer) => answer.blob())
      .then((data) => {
        made = URL.createObjectURL(data);
        setUrl(made);
      })
      .catch((failure: unknown) => ending.signal.aborted || setError(failure));
    return () => {
      ending.abort();
      if (made) URL.revokeObjectURL(made);
    };
  }, [source]);
  if (error) return <Problem error={error} />;
  return url ? (
    <img src={url} alt={name} onError={() => setError(new Error(T.preview.none))} />
  ) : (
    <p>{T.common.loading}</p>
  );
}

function Text({ source, size }: { source: string; size: number }) {
  const [text, setText] = useState<string>();
  const [error, setError] = useState<unknown>(null);
  useEffect(() => {
    const ending = new AbortController();
    const headers: Record<string, string> = {};
    if (size > TEXT_BYTES_MAX) headers.Range = `bytes=0-${TEXT_BYTES_MAX - 1}`;
    request("GET", source, { headers, signal: ending.signal })
      .then((answer) => answer.text())
      .then(setText)
      .catch((failure: unknown) => ending.signal.aborted || setError(failure));
    return () => ending.abort();
  }, [source, size]);
  if (error) return <Problem error={error} />;
  return (
    <>
      {size > TEXT_BYTES_MAX && <p>{T.preview.large(bytes(size))}</p>}
      <pre tabIndex={0}>{text ?? T.common.loading}</pre>
    </>
  );
}

/** It is read piece by piece, for as long as it is played. */
function Film(of: { kind: "audio" | "video"; space: string; path: string; source: string }) {
  const { kind: Kind, space, path, source } = of;
  const [url, setUrl] = useState("");
  const [error, setError] = useState<unknown>(null);
  useEffect(() => {
    ticketed(source, space, path).then(setUrl).catch(setError);
  }, [source]);
  if (error) return <Problem error={error} />;
  if (!url) return <p>{T.common.loading}</p>;
  return <Kind controls src={url} onError={() => setError(new Error(T.preview.none))} />;
}

const LINK_SECONDS = 3600;

/**
 * The browser's viewer runs the scripts of a PDF, which can read the address of it and send it
 * away. So that has no ticket, which lasts for hours: it is a link to this file, revoked in the
 * end.
 */
function Pdf(of: { space: string; path: string; source: string; isOwn: boolean }) {
  const { space, path, source, isOwn } = of;
  const [url, setUrl] = useState(isOwn ? "" : source);
  const [error, setError] = useState<unknown>(null);
  useEffect(() => {
    if (!isOwn) return;
    const body = { path, expires_in: LINK_SECONDS };
    const made = call<{ id: string; url: string }>("POST", inSpace(space, "shares"), { body });
    made.then((link) => setUrl(link.url)).catch(setError);
    return () => {
      made
        .then(({ id }) => request("DELETE", inSpace(space, `shares/${encodeURIComponent(id)}`)))
        .catch(() => undefined);
    };
  }, [space, path, isOwn]);
  if (error) return <Problem error={error} />;
  return url ? <iframe title={T.preview.frame} src={url} /> : <p>{T.common.loading}</p>;
}
