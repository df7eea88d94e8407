import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { CliError, EXIT } from "../exit.js";

const SYSTEM_PLACES = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"] as const;

/**
 * Finds a program in the PATH or where Debian puts servers, which is not in everybody's PATH.
 * @param debianPackage named in the message when it is missing
 * @throws CliError (unavailable)
 */
export function findProgram(name: string, debianPackage: string, path: string): string {
  for (const directory of [...path.split(delimiter).filter((part) => part !== ""), ...SYSTEM_PLACES]) {
    const candidate = join(directory, name);
    try {
      accessSync(candidate, constants.X_OK);
      return candidate;
    } catch {
      continue;
    }
  }
  throw new CliError(
    `${name} is not installed. On Debian or Ubuntu: apt-get install ${debianPackage} (its service need not run).`,
    EXIT.unavailable,
  );
}
