import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

/** The fields of a package-lock entry that matter here. */
export interface LockEntry {
  version?: string;
  dev?: boolean;
  optional?: boolean;
  os?: string[];
  cpu?: string[];
  optionalDependencies?: Record<string, string>;
}

/** A package-lock file, version 3. */
export interface Lock {
  packages: Record<string, LockEntry>;
}

const SYSTEMS = ["darwin", "win32", "android", "freebsd", "openharmony", "linux"];
const PROCESSORS: [token: string, cpu: string][] = [
  ["riscv64", "riscv64"],
  ["ppc64", "ppc64"],
  ["s390x", "s390x"],
  ["ia32", "ia32"],
  ["aarch64", "arm64"],
  ["arm64", "arm64"],
  ["arm", "arm"],
  ["x64", "x64"],
];

/**
 * Entries for the platform builds that a lock lacks because the registry it was made with does not carry them: npm 11 refuses
 * a lock without them, though it never installs a build of another platform. Only exact versions can be completed.
 */
export function missingPlatformEntries(lock: Lock): Record<string, LockEntry> {
  const missing: Record<string, LockEntry> = {};
  for (const [path, entry] of Object.entries(lock.packages)) {
    for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
      const known = [`node_modules/${name}`, `${path}/node_modules/${name}`].some((key) => key in lock.packages);
      if (known) continue;
      const os = SYSTEMS.find((system) => name.includes(system));
      const cpu = PROCESSORS.find(([token]) => name.includes(token))?.[1];
      if (os === undefined || cpu === undefined) throw new Error(`${name}: cannot tell its platform from its name`);
      const place = { version, cpu: [cpu], optional: true, os: [os] };
      missing[`node_modules/${name}`] = entry.dev === true ? { ...place, dev: true } : place;
    }
  }
  return missing;
}

/** The lock with its missing platform entries, in npm's order of paths. */
export function completeLock(lock: Lock): Lock {
  const all = { ...lock.packages, ...missingPlatformEntries(lock) };
  const paths = Object.keys(all).sort((a, b) => a.localeCompare(b, "en"));
  return { ...lock, packages: Object.fromEntries(paths.map((path) => [path, all[path] ?? {}])) };
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const path = process.argv[2] ?? "package-lock.json";
  const lock = JSON.parse(readFileSync(path, "utf8")) as Lock;
  writeFileSync(path, `${JSON.stringify(completeLock(lock), null, 2)}\n`);
}
