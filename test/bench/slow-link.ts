import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Relay } from "../fleet/relay.js";

/** Bytes that pass at once: a message waits for no more of another one than that. */
const SLICE_BYTES = 2048;
/** By so much a timer may be late without the link being slower for it. */
const LATE_MS = 50;

/** A TCP relay each of whose connections carries so many bytes a second in either direction. */
export class SlowLink extends Relay {
  private constructor(private readonly bytesPerSecond: number) {
    super();
  }

  static async open(bytesPerSecond: number): Promise<SlowLink> {
    const link = new SlowLink(bytesPerSecond);
    await link.listen();
    return link;
  }

  protected carry(from: Socket, to: Socket): void {
    void this.#carrySlowly(from, to);
  }

  async #carrySlowly(from: Socket, to: Socket): Promise<void> {
    let freeAtMs = 0;
    try {
      for await (const data of from) {
        const bytes = data as Buffer;
        for (let at = 0; at < bytes.length; at += SLICE_BYTES) {
          const slice = bytes.subarray(at, at + SLICE_BYTES);
          freeAtMs = Math.max(freeAtMs, performance.now() - LATE_MS) + (1000 * slice.length) / this.bytesPerSecond;
          const waitMs = freeAtMs - performance.now();
          if (waitMs > 0) await sleep(waitMs);
          to.write(slice);
        }
      }
    } catch {
      // The connection broke; its sockets go.
    }
    from.destroy();
  }
}
