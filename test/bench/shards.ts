import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** One role's speech, its name included, as it stands in the text. */
interface Speech {
  role: string;
  text: string;
}

/** Speeches of a play in the layout "ROLE:\nlines\n\n". */
export function speeches(play: string): Speech[] {
  return play
    .split(/\n\n+/)
    .filter((part) => part.trim() !== "")
    .map((part) => ({ role: part.slice(0, Math.max(0, part.indexOf(":"))), text: `${part.trim()}\n\n` }));
}

/**
 * Deals whole roles to devices, the longest first, each to the device that has least: unequal voices, similar sizes.
 * @returns one text per device
 */
export function splitByRole(play: string, devices: number): string[] {
  const byRole = new Map<string, string>();
  for (const { role, text } of speeches(play)) byRole.set(role, (byRole.get(role) ?? "") + text);
  const shards = Array.from({ length: devices }, () => "");
  const longestFirst = [...byRole].sort(([a, x], [b, y]) => y.length - x.length || (a < b ? -1 : 1));
  for (const [, text] of longestFirst) {
    const least = shards.reduce((best, shard, i) => (shard.length < (shards[best]?.length ?? 0) ? i : best), 0);
    shards[least] = (shards[least] ?? "") + text;
  }
  return shards;
}

/** Writes one folder with one text file per shard and returns the folders. */
export function writeShards(root: string, shards: readonly string[]): string[] {
  return shards.map((text, i) => {
    const folder = join(root, `device-${i + 1}`);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "speeches.txt"), text);
    return folder;
  });
}
