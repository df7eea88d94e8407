import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { addressesByPresident } from "../../fleet/addresses.js";
import { PRESIDENTS } from "./settings.js";

/** Characters of each president's last address that are held out: enough to tell losses apart, quick to evaluate. */
const HELD_CHARACTERS = 32_000;

export interface Corpus {
  /** A device's addresses as text files. */
  folders: string[];
  /** The same as bytes. */
  train: Int32Array[];
  /** Of the last address of every device's president, which no device has. */
  held: Int32Array;
  /** All addresses of everyone else. */
  others: Int32Array;
}

const tokensOf = (texts: readonly { text: string }[]): Int32Array =>
  Int32Array.from(Buffer.from(texts.map(({ text }) => text).join("\n"), "utf8"));

/** State of the Union addresses: a president a device, all but the last; and those of all others for the base. */
export function writeCorpus(root: string): Corpus {
  const byName = addressesByPresident();
  const own = PRESIDENTS.map((name) => byName.get(name) ?? []);
  const folders = own.map((all, i) => {
    const folder = join(root, `device-${i + 1}`);
    mkdirSync(folder, { recursive: true });
    for (const { year, text } of all.slice(0, -1)) writeFileSync(join(folder, `${year}.txt`), text);
    return folder;
  });
  return {
    folders,
    train: own.map((all) => tokensOf(all.slice(0, -1))),
    held: tokensOf(own.map((all) => ({ text: (all.at(-1)?.text ?? "").slice(0, HELD_CHARACTERS) }))),
    others: tokensOf([...byName].flatMap(([name, all]) => (PRESIDENTS.includes(name) ? [] : all))),
  };
}
