import { UpdateManifest } from "#proto/shoal/v1/round.js";

/** What the subject of a message in the update log says: these facts are authenticated by NATS. */
export interface UpdateSubject {
  device: string;
  round: string;
  part: "chunk" | "commit";
}

/** Takes `shoal.u.<device>.<round>.chunk|commit` apart; undefined for anything else. */
export function parseUpdateSubject(subject: string): UpdateSubject | undefined {
  const [root, plane, device, round, part, ...rest] = subject.split(".");
  if (root !== "shoal" || plane !== "u" || device === undefined || round === undefined || rest.length > 0)
    return undefined;
  return part === "chunk" || part === "commit" ? { device, round, part } : undefined;
}

/** The manifest in a commit's payload; undefined if the bytes are none. */
export function decodeManifest(data: Uint8Array): UpdateManifest | undefined {
  try {
    return UpdateManifest.decode(data);
  } catch {
    return undefined;
  }
}
