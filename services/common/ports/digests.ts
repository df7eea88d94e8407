/** A SHA-256 digest that is taken part by part. */
export interface DigestTask {
  /** Adds the next part, behind those added before. The bytes stay as they are until it has returned. Throws on IO failures. */
  add(part: Uint8Array): Promise<void>;
  /** Ends it, once all parts are added. @returns "sha256:" and 64 lower-case hexadecimal digits. */
  finish(): Promise<string>;
  /** Lets go of it, unless it is finished. */
  drop(): void;
}

/** Takes digests, perhaps beside what the caller does meanwhile. */
export interface Digests {
  /** @param sizeBytes of all parts, about. */
  open(sizeBytes: number): DigestTask;
}
