import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const buf = "node_modules/.bin/buf";

function git(...args: string[]): string | undefined {
  const run = spawnSync("git", args, { encoding: "utf8" });
  return run.status === 0 ? run.stdout.trim() : undefined;
}

/**
 * The commit whose contracts must not be broken: the newest release tag, before the first release the main branch one was taken
 * from, and on the main branch itself its last commit but one. Undefined where there is no history to compare with.
 */
export function findBaseline(): string | undefined {
  const tag = git("describe", "--tags", "--abbrev=0", "--match", "v*");
  if (tag !== undefined) return tag;
  const head = git("rev-parse", "HEAD");
  const base = git("merge-base", "HEAD", "origin/main");
  if (base !== undefined && base !== head) return base;
  return git("rev-parse", "--verify", "--quiet", "HEAD~1");
}

/** What breaks a client of the baseline's contracts, as buf says it; empty if nothing does. */
export function findBreakingChanges(baseline: string): string {
  const folder = mkdtempSync(join(tmpdir(), "shoal-contracts-"));
  try {
    const archive = execFileSync("git", ["archive", "--format=tar", baseline, "buf.yaml", "proto"], {
      maxBuffer: 1 << 28,
    });
    execFileSync("tar", ["-x", "-C", folder], { input: archive });
    const run = spawnSync(buf, ["breaking", "--against", folder], { encoding: "utf8" });
    return run.status === 0 ? "" : `${run.stdout}${run.stderr}`;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function listFiles(folder: string): string[] {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort();
}

/** Files of proto/gen that differ from what the contracts generate now, each with what is wrong. */
export function findStaleGenerated(): string[] {
  const folder = mkdtempSync(join(tmpdir(), "shoal-generated-"));
  try {
    const fresh = join(folder, "proto/gen");
    mkdirSync(fresh, { recursive: true });
    execFileSync(buf, ["generate", "--output", folder], { stdio: "inherit" });
    execFileSync(buf, ["build", "--output", join(fresh, "descriptors.binpb")], { stdio: "inherit" });
    const wanted = listFiles(fresh);
    const present = listFiles("proto/gen");
    const gone = wanted.filter((file) => !present.includes(file)).map((file) => `${file}: not checked in`);
    const extra = present.filter((file) => !wanted.includes(file)).map((file) => `${file}: nothing generates it`);
    const changed = wanted
      .filter((file) => present.includes(file))
      .filter((file) => !readFileSync(join(fresh, file)).equals(readFileSync(join("proto/gen", file))))
      .map((file) => `${file}: differs`);
    return [...gone, ...extra, ...changed];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
