import { randomUUID } from "node:crypto";
import { link, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CodedError, codeOf } from "../coded-error.js";
import { createTrustRoot, type TrustRoot } from "./credentials.js";

const TRUST_FILE = "trust.json";

/** Paths of the creds files that ensureKeys writes. */
export function credsPaths(dir: string): { service: string; system: string } {
  return { service: join(dir, "service.creds"), system: join(dir, "system.creds") };
}

/**
 * The trust root in a directory, made at the first call. Several processes may call at once: one of them wins. All
 * files are readable by their owner only. Beside it lie service.creds and system.creds, ready to connect with.
 */
export async function ensureKeys(dir: string): Promise<TrustRoot> {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const path = join(dir, TRUST_FILE);
  let root = await readKeys(dir);
  if (root === undefined) {
    const draft = `${path}.${randomUUID()}`;
    await writeFile(draft, JSON.stringify(await createTrustRoot(), undefined, 2), { mode: 0o600, flush: true });
    try {
      // A link, unlike a rename, does not replace what another process has just put there.
      await link(draft, path);
    } catch (error) {
      if (codeOf(error) !== "EEXIST") throw error;
    } finally {
      await rm(draft, { force: true });
    }
    root = await readKeys(dir);
  }
  if (root === undefined)
    throw new CodedError("KEYS_MISSING", `no ${TRUST_FILE} in ${dir} although it was just written`);
  const paths = credsPaths(dir);
  await writeSecret(paths.service, root.serviceCreds);
  await writeSecret(paths.system, root.systemCreds);
  return root;
}

/** The trust root in a directory, or undefined; throws code "KEYS_UNREADABLE" for a damaged one. */
export async function readKeys(dir: string): Promise<TrustRoot | undefined> {
  const path = join(dir, TRUST_FILE);
  let content: string;
  try {
    content = await readFile(path, "utf8");
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
  try {
    return JSON.parse(content) as TrustRoot;
  } catch (error) {
    throw new CodedError("KEYS_UNREADABLE", `${path} is damaged; restore it from a backup`, { cause: error });
  }
}

/** Writes a secret so that a crash leaves the old file or the new one, readable by its owner only. */
export async function writeSecret(path: string, content: string): Promise<void> {
  const draft = `${path}.${randomUUID()}`;
  await writeFile(draft, content, { mode: 0o600, flush: true });
  await rename(draft, path);
}
