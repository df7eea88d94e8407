import type { SlabMemory } from "./read-slab.js";

interface Held {
  /** Messages in it that somebody reads. */
  messages: number;
  /** Whether all messages in it have come. */
  isComplete: boolean;
}

/**
 * The memory that a connection is read into, to be used again. It is shared memory, so that a thread may read a message where it lies.
 *
 * A slab is free once what came in it was read: it is complete when a message comes that lies in another one, since they come in
 * their order. So this is for connections whose every message of some size is held as it comes and released, and of which whoever
 * listens keeps nothing else. As many slabs as were ever needed at once are kept: V8 does not count shared memory and would collect
 * it too late.
 */
export class SlabLedger implements SlabMemory {
  readonly #free: SharedArrayBuffer[] = [];
  /** In the order in which they were taken. */
  readonly #slabs = new Map<ArrayBufferLike, Held>();

  constructor(private readonly slabBytes: number) {}

  /** Memory of this size, which holds anything. */
  take(bytes: number): Uint8Array {
    // It grows to its full size, and what it had before is not used again.
    if (bytes !== this.slabBytes) return new Uint8Array(new SharedArrayBuffer(bytes));
    const slab = this.#free.pop() ?? new SharedArrayBuffer(bytes);
    this.#slabs.set(slab, { messages: 0, isComplete: false });
    return new Uint8Array(slab);
  }

  /** Of a slab in which nothing lies that was handed on. */
  giveBack({ buffer }: Uint8Array): void {
    if (this.#slabs.delete(buffer) && buffer instanceof SharedArrayBuffer) this.#free.push(buffer);
  }

  /** Is told of every message as it comes. One that was put together elsewhere is nobody's business here. */
  hold({ buffer }: Uint8Array): void {
    const held = this.#slabs.get(buffer);
    if (held === undefined) return;
    held.messages += 1;
    for (const [slab, earlier] of this.#slabs) {
      if (slab === buffer) return;
      earlier.isComplete = true;
      this.#freeIfDone(slab, earlier);
    }
  }

  /** Of a message that was held: nobody reads it any more. */
  release({ buffer }: Uint8Array): void {
    const held = this.#slabs.get(buffer);
    if (held === undefined) return;
    held.messages -= 1;
    this.#freeIfDone(buffer, held);
  }

  #freeIfDone(slab: ArrayBufferLike, { messages, isComplete }: Held): void {
    if (messages > 0 || !isComplete) return;
    this.#slabs.delete(slab);
    if (slab instanceof SharedArrayBuffer) this.#free.push(slab);
  }
}
