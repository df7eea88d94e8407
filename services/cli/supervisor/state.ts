import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";

const schema = z.object({
  version: z.literal(1),
  ports: z.record(z.string(), z.number().int().min(1).max(65535)),
  processes: z.array(z.object({ name: z.string(), pid: z.number().int(), startTime: z.string() })),
});

/** What `up` remembers in its directory from one run to the next. */
export type UpState = z.infer<typeof schema>;

const FILE = "state.json";

/** Writes a file so that a reader sees the old or the new content, never a part. A failure leaves the old one alone. */
export function writeAtomically(path: string, text: string, mode = 0o644): void {
  const temporary = `${path}.${process.pid}.new`;
  try {
    const file = openSync(temporary, "w", mode);
    try {
      // Not writeSync, which may write a part of the text to a disk that is nearly full and say nothing.
      writeFileSync(file, text);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
}

/** The remembered state; an empty one if there is none, or if the file was damaged. */
export function readState(directory: string): UpState {
  const empty: UpState = { version: 1, ports: {}, processes: [] };
  try {
    const parsed = schema.safeParse(JSON.parse(readFileSync(join(directory, FILE), "utf8")));
    return parsed.success ? parsed.data : empty;
  } catch {
    return empty;
  }
}

export function writeState(directory: string, state: UpState): void {
  writeAtomically(join(directory, FILE), `${JSON.stringify(state, null, 2)}\n`);
}
