// Bundle src/ into ../control/console/built: each file beside itself compressed, and with the
// digest of its content in its name, so that browsers may keep it for good.
import { build } from "esbuild";
import { mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { gzipSync } from "node:zlib";

const BUILT = "../control/console/built";
const SCRATCH = `${BUILT}.new`;

// The page's policy allows no style elements, which xterm makes for its colors and sizes. It
// gets elements of our own in their place (src/stylesheet.ts).
const styles = {
  name: "styles",
  setup(builder) {
    builder.onLoad({ filter: /@xterm\/xterm\/lib\/xterm\.m?js$/ }, ({ path }) => {
      const text = readFileSync(path, "utf8");
      const parts = text.split('createElement("style")');
      if (parts.length < 2) throw new Error(`${path} makes no style elements any more`);
      return { contents: parts.join('createElement("gfs-style")'), loader: "js" };
    });
  },
};

rmSync(SCRATCH, { recursive: true, force: true });
const { metafile } = await build({
  entryPoints: ["src/main.tsx"],
  outdir: SCRATCH,
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  metafile: true,
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  logLevel: "warning",
  plugins: [styles],
});

const outputs = Object.entries(metafile.outputs);
const [script, { cssBundle, imports }] = outputs.find(
  ([, { entryPoint }]) => entryPoint === "src/main.tsx",
);
// What the script cannot run without is asked for with it, and not when it has been read.
const preloads = imports
  .filter(({ kind }) => kind === "import-statement")
  .map(({ path }) => `<link rel="modulepreload" href="/console/${basename(path)}" nonce="NONCE">`);
const page = readFileSync("src/index.html", "utf8")
  .replace("SCRIPT", `/console/${basename(script)}`)
  .replace("STYLES", `/console/${basename(cssBundle)}`)
  .replace("<!-- PRELOADS -->", preloads.join(""));
mkdirSync(SCRATCH, { recursive: true });
writeFileSync(join(SCRATCH, "index.html"), page);
for (const name of readdirSync(SCRATCH)) {
  const packed = gzipSync(readFileSync(join(SCRATCH, name)), { level: 9 });
  writeFileSync(join(SCRATCH, `${name}.gz`), packed);
}
rmSync(BUILT, { recursive: true, force: true });
renameSync(SCRATCH, BUILT);
