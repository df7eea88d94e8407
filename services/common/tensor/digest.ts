import { createHash } from "node:crypto";

/** Digest of the bytes of all parts, one after the other: "sha256:" and 64 lower-case hexadecimal digits. */
export function sha256Digest(...parts: readonly Uint8Array[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return `sha256:${hash.digest("hex")}`;
}

/** The same digest, taken piece by piece. */
export interface DigestStream {
  add(part: Uint8Array): void;
  /** Ends the stream. */
  finish(): string;
}

/** Starts a digest over bytes that are not all in memory at once. */
export function openDigest(): DigestStream {
  const hash = createHash("sha256");
  return {
    add: (part) => {
      hash.update(part);
    },
    finish: () => `sha256:${hash.digest("hex")}`,
  };
}
