import { once } from "node:events";
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import type { TrainingCase } from "#test/backend/support/training-run.js";

const ROOT = resolve(".");
/** What a browser gets to see, as files. */
const FOLDERS = ["dist", "node_modules"].map((folder) => join(ROOT, folder) + sep);
const TYPES: Readonly<Record<string, string>> = {
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};
/** Without these a page has no shared memory, and so no threads. */
const ISOLATION = { "cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "require-corp" };

const addressOf = (file: string): string => `/${file.slice(ROOT.length + 1).replaceAll(sep, "/")}`;
const addressOfModule = (name: string): string => addressOf(fileURLToPath(import.meta.resolve(name)));

/** Tells a browser what Node reads from package.json: the rooms' names, and where the libraries are. */
function importMap(): string {
  const { imports } = JSON.parse(readFileSync("package.json", "utf8")) as { imports: Record<string, string> };
  const rooms = Object.entries(imports).map(([name, folder]): [string, string] => [
    name.replace("*", ""),
    folder.replace(/^\.|\*$/g, ""),
  ]);
  const libraries = {
    "onnxruntime-web": addressOfModule("onnxruntime-web/wasm"),
    "@bufbuild/protobuf/wire": addressOfModule("@bufbuild/protobuf/wire"),
  };
  return JSON.stringify({ imports: { ...Object.fromEntries(rooms), ...libraries } });
}

const page = (): string =>
  `<!doctype html><title>Shoal</title><link rel="icon" href="data:,"><script type="importmap">${importMap()}</script>`;

const asJson = ({ graph: _graph, ...rest }: TrainingCase): string =>
  JSON.stringify(rest, (_key, value: unknown) => (ArrayBuffer.isView(value) ? [...(value as Float32Array)] : value));

function send(response: ServerResponse, type: string, body: string | Uint8Array): void {
  response.writeHead(200, { "content-type": type, ...ISOLATION }).end(body);
}

async function answer(path: string, cases: readonly TrainingCase[], response: ServerResponse): Promise<void> {
  const [, index, part] = /^\/cases\/(\d+)\/(graph\.onnx|case\.json)$/.exec(path) ?? [];
  const one = cases[Number(index)];
  const file = join(ROOT, path);
  if (path === "/") send(response, "text/html", page());
  else if (one !== undefined && part === "graph.onnx") send(response, "application/octet-stream", one.graph);
  else if (one !== undefined) send(response, "application/json", asJson(one));
  else if (FOLDERS.some((folder) => file.startsWith(folder)))
    send(response, TYPES[extname(file)] ?? "application/octet-stream", await readFile(file));
  else response.writeHead(404).end();
}

/** Serves an empty page, the built code with an import map, and training cases, on a free port of this machine. */
export async function openSite(cases: readonly TrainingCase[]): Promise<{ url: string; close: () => void }> {
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://localhost");
    answer(pathname, cases, response).catch(() => response.writeHead(404).end());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const close = (): void => {
    server.close();
    server.closeAllConnections();
  };
  return { url: `http://127.0.0.1:${port}`, close };
}
