import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { importFolder } from "#common/graph/folder.js";

const folder = resolve("../shared/models/stories260K");

/** Whether the shared models are missing, which only a CI may not excuse. */
export const storiesAbsent = !existsSync(folder) && process.env["CI"] === undefined;

export const storiesTitle = (what: string): string =>
  `${what} (needs ../shared${storiesAbsent ? ", which is absent here" : ""})`;

export const readStories = (name: string): Uint8Array => readFileSync(join(folder, name));

/** The tokens that the model's author's program writes, the first of them the prompt. */
export const expectedStory = (): number[] =>
  JSON.parse(new TextDecoder().decode(readStories("expected_greedy_ids.json"))) as number[];

export function loadStories(): Extract<ReturnType<typeof importFolder>, { ok: true }> {
  const files = ["config.json", "model.safetensors"].map((name) => [name, readStories(name)] as const);
  const imported = importFolder(new Map(files));
  if (!imported.ok) throw new Error(JSON.stringify(imported.violations));
  return imported;
}
