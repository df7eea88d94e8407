import { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { LogPart } from "../ports/update-log.js";

/** What the subject of a message in the update log says: these facts are authenticated by NATS. */
export interface UpdateSubject {
  device: string;
  round: string;
  part: "chunk" | "commit";
}

/** NATS stores messages under "*" and ">" like under any word; as a filter such a name would mean everybody's. */
const NAME = /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/;

/** Takes `shoal.u.<device>.<round>.chunk|commit` apart; undefined for anything else, also if the names can be none. */
export function parseUpdateSubject(subject: string): UpdateSubject | undefined {
  const [root, plane, device, round, part, ...rest] = subject.split(".");
  if (root !== "shoal" || plane !== "u" || device === undefined || round === undefined || rest.length > 0)
    return undefined;
  if (!NAME.test(device) || !NAME.test(round)) return undefined;
  return part === "chunk" || part === "commit" ? { device, round, part } : undefined;
}

/** What lies in a log, counted by device and round, from its subjects; `strays` counts what belongs to no round. */
export function countParts(subjects: Iterable<readonly [subject: string, messages: number]>): {
  parts: LogPart[];
  strays: number;
} {
  const parts = new Map<string, LogPart>();
  let strays = 0;
  for (const [subject, messages] of subjects) {
    const parsed = parseUpdateSubject(subject);
    if (parsed === undefined) {
      strays += messages;
      continue;
    }
    const { device, round } = parsed;
    const key = `${device}.${round}`;
    const part = parts.get(key) ?? { device, round, chunks: 0, commits: 0 };
    part[parsed.part === "chunk" ? "chunks" : "commits"] += messages;
    parts.set(key, part);
  }
  return { parts: [...parts.values()], strays };
}

/** Commits of a round are read by pages of about so many bytes: a device may append as many as it likes. */
export const COMMITS_PAGE_BYTES = 4 * 1024 ** 2;

/** No honest manifest is longer: it names some ten thousand chunks, or a gateway's site of a thousand devices. */
const MAX_MANIFEST_BYTES = 256 * 1024;

/** The manifest in a commit's payload; undefined if the bytes are none. What is too long is not looked into. */
export function decodeManifest(data: Uint8Array): UpdateManifest | undefined {
  if (data.length > MAX_MANIFEST_BYTES) return undefined;
  try {
    return UpdateManifest.decode(data);
  } catch {
    return undefined;
  }
}
