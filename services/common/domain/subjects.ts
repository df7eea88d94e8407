/**
 * NATS subjects of the device plane. A device may publish below `shoal.d.<device>` and `shoal.u.<device>` and read below
 * `shoal.i.<device>` and its inbox prefix only, so the second token of a subject is an authenticated device name.
 */
export const subjects = {
  /** Join requests with a token. */
  join: (tokenId: string) => `shoal.join.${tokenId}`,
  joinAll: "shoal.join.*",
  heartbeat: (device: string) => `shoal.d.${device}.heartbeat`,
  heartbeatAll: "shoal.d.*.heartbeat",
  blob: (device: string) => `shoal.d.${device}.blob`,
  blobAll: "shoal.d.*.blob",
  /**
   * What a gateway asks for a device of its site, or for one that wants to join with a token: the request as that device
   * made it. The gateway is the authenticated one.
   */
  via: (gateway: string, name: string, request: ViaRequest) => `shoal.d.${gateway}.via.${name}.${request}`,
  viaAll: "shoal.d.*.via.*.*",
  /** Sent to a device to make its next heartbeat come sooner. */
  nudge: (device: string) => `shoal.i.${device}.nudge`,
  updateChunk: (device: string, round: string) => `shoal.u.${device}.${round}.chunk`,
  updateCommit: (device: string, round: string) => `shoal.u.${device}.${round}.commit`,
  /** Commits of a round from any device. */
  roundCommits: (round: string) => `shoal.u.*.${round}.commit`,
  allCommits: "shoal.u.*.*.commit",
  allUpdates: "shoal.u.>",
  /** What the log takes: a device may publish more, which nobody hears. */
  loggedUpdates: ["shoal.u.*.*.chunk", "shoal.u.*.*.commit"],
} as const;

/** What a gateway passes on. */
export type ViaRequest = "heartbeat" | "blob" | "join";

/** Takes `shoal.d.<gateway>.via.<name>.<request>` apart; undefined for anything else. */
export function parseVia(subject: string): { gateway: string; name: string; request: string } | undefined {
  const [root, plane, gateway, via, name, request, ...rest] = subject.split(".");
  if (root !== "shoal" || plane !== "d" || via !== "via" || rest.length > 0) return undefined;
  if (gateway === undefined || name === undefined || request === undefined) return undefined;
  return { gateway, name, request };
}

/** Inbox prefix of a device. */
export function deviceInbox(device: string): string {
  return `_INBOX_d_${device}`;
}

/** Inbox prefix of a bootstrap credential. */
export function joinInbox(tokenId: string): string {
  return `_INBOX_j_${tokenId}`;
}

/** The device token of a device-plane subject; undefined for other subjects. */
export function deviceOf(subject: string): string | undefined {
  const [root, plane, device] = subject.split(".");
  return root === "shoal" && (plane === "d" || plane === "u" || plane === "i") ? device : undefined;
}

/** Largest piece of a blob or update in one message, bytes: fits NATS's default 1 MiB payload with room for headers. */
export const MAX_PIECE_BYTES = 512 * 1024;

/** Largest message of the update log, bytes: a piece with its headers, so that counting messages bounds bytes. */
export const MAX_UPDATE_MESSAGE_BYTES = MAX_PIECE_BYTES + 16 * 1024;
