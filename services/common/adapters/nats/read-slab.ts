/** What is read at once at first, as much as a socket of Node reads. */
export const LEAST_SLAB_BYTES = 64 * 1024;
/** And at most, once reads have filled all the room they had. */
export const MOST_SLAB_BYTES = 4 * 1024 ** 2;

/** No line of the protocol is longer, the server's greeting with all its neighbours included. */
const MOST_LINE_BYTES = 64 * 1024;
const LINE_FEED = 10;
const SPACE = 32;
/** First letters of MSG and HMSG, in either case. */
const MESSAGE = new Set(Buffer.from("MmHh"));
/** "\r\n" behind a payload. */
const PAYLOAD_END_BYTES = 2;

/** Where slabs come from. */
export interface SlabMemory {
  /** So many bytes, which hold anything. */
  take(bytes: number): Uint8Array;
  /** Is told of what it gave and nobody has a view of. */
  giveBack?(bytes: Uint8Array): void;
}

const newMemory: SlabMemory = { take: (bytes) => new Uint8Array(Buffer.allocUnsafeSlow(bytes).buffer) };

/** Bytes behind a line of the protocol that belong to it; undefined if it is none. The line lies from `start` up to its line feed. */
function payloadBytes(bytes: Uint8Array, start: number, lineFeed: number): number | undefined {
  if (!MESSAGE.has(bytes[start] ?? 0)) return 0;
  const from = bytes.lastIndexOf(SPACE, lineFeed) + 1;
  const size = Buffer.from(bytes.buffer, bytes.byteOffset + from, Math.max(0, lineFeed - 1 - from)).toString("latin1");
  return from > start && /^\d{1,10}$/.test(size) ? Number(size) + PAYLOAD_END_BYTES : undefined;
}

/**
 * The memory that a socket with the NATS protocol is read into. Whole messages are handed out, so that nobody has to put one together;
 * of what a large read brings, where they lie. The room grows with reads that fill it. What a small read brings is copied, so that a
 * quiet connection needs no other slab. Who keeps a small message for long copies it: it may lie in a slab, which it would keep.
 *
 * What is no such protocol, or a message that no slab can hold, is handed out as it comes.
 */
export class ReadSlab {
  #bytes: Uint8Array;
  /** Bytes before it are handed out, those from `used` on have not come. */
  #start = 0;
  #used = 0;
  /** Where the first message that is not complete begins; behind `used` in one that is handed out as it comes. */
  #next = 0;
  #isForeign = false;
  /** Whether somebody may have a view of the slab. */
  #isViewed = false;

  constructor(private readonly memory: SlabMemory = newMemory) {
    this.#bytes = memory.take(LEAST_SLAB_BYTES);
  }

  /** Where the next bytes go. */
  room(): Uint8Array {
    return this.#bytes.subarray(this.#used);
  }

  /** Is told that the first `count` bytes of the room have come. @returns what is complete now, the caller's from now on. */
  take(count: number): Uint8Array {
    this.#used += count;
    this.#scan();
    const start = this.#start;
    const end = Math.min(this.#next, this.#used);
    const isLarge = 2 * (end - start) > LEAST_SLAB_BYTES;
    const taken = isLarge ? this.#bytes.subarray(start, end) : this.#bytes.slice(start, end);
    this.#start = end;
    this.#isViewed ||= isLarge;
    const isFull = this.#used === this.#bytes.length;
    if (!isLarge && end === this.#used) this.#rewind(end - start);
    // With less room than a quarter, reads would be cut short by it; a message that begins the slab has no more room in another.
    const isShort = 4 * (this.#bytes.length - this.#used) < this.#bytes.length && this.#start > 0;
    if (isFull || isShort) this.#renew(isFull);
    return taken;
  }

  /** Goes on to the first message that is not complete. */
  #scan(): void {
    const came = this.#bytes.subarray(0, this.#used);
    while (this.#next < this.#used) {
      const lineFeed = came.indexOf(LINE_FEED, this.#next);
      const payload = lineFeed < 0 ? 0 : payloadBytes(came, this.#next, lineFeed);
      this.#isForeign ||= payload === undefined || (lineFeed < 0 && this.#used - this.#next > MOST_LINE_BYTES);
      if (this.#isForeign) {
        this.#next = this.#used;
        return;
      }
      if (lineFeed < 0) return;
      const end = lineFeed + 1 + (payload ?? 0);
      if (end > this.#used && end - this.#next <= MOST_SLAB_BYTES) return;
      this.#next = end;
    }
  }

  /** Bytes that were copied are written over. */
  #rewind(bytes: number): void {
    this.#used -= bytes;
    this.#start -= bytes;
    this.#next -= bytes;
  }

  /** Goes on in another slab, with what is not complete. */
  #renew(isFull: boolean): void {
    const rest = this.#bytes.subarray(this.#start, this.#used);
    const size = isFull ? 2 * this.#bytes.length : this.#bytes.length;
    const bytes = this.memory.take(Math.min(size, MOST_SLAB_BYTES));
    bytes.set(rest);
    if (!this.#isViewed) this.memory.giveBack?.(this.#bytes);
    this.#isViewed = false;
    this.#bytes = bytes;
    this.#next -= this.#start;
    this.#start = 0;
    this.#used = rest.length;
  }
}
