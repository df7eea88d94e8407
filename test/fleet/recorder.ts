import type { Socket } from "node:net";
import { Relay } from "./relay.js";

/** A TCP relay that keeps every byte that passes, in both directions: what the agents really say on the wire. */
export class Recorder extends Relay {
  readonly up: Buffer[] = [];
  readonly down: Buffer[] = [];

  static async open(): Promise<Recorder> {
    const recorder = new Recorder();
    await recorder.listen();
    return recorder;
  }

  protected carry(from: Socket, to: Socket, way: "up" | "down"): void {
    from.on("data", (bytes) => {
      this[way].push(bytes);
      to.write(bytes);
    });
  }
}

/**
 * Pieces of `text` found in `captured`, as they stand, in hexadecimal or in base64 (each alignment).
 * @param length bytes of a piece; short enough to catch a sentence, long enough not to be met by chance
 */
export function leakedPieces(captured: Buffer, text: string, length = 20): string[] {
  const bytes = Buffer.from(text, "utf8");
  const wanted = new Set<string>();
  for (let i = 0; i + length <= bytes.length; i++) wanted.add(bytes.toString("latin1", i, i + length));
  const leaked = new Set<string>();
  const scan = (haystack: string): void => {
    for (let i = 0; i + length <= haystack.length; i++) {
      const piece = haystack.slice(i, i + length);
      if (wanted.has(piece)) leaked.add(piece);
    }
  };
  scan(captured.toString("latin1"));
  for (const run of captured.toString("latin1").match(/[A-Za-z0-9+/_-]{28,}/g) ?? []) {
    for (let skip = 0; skip < 4; skip++) scan(Buffer.from(run.slice(skip), "base64").toString("latin1"));
    scan(Buffer.from(run, "hex").toString("latin1"));
  }
  return [...leaked];
}
