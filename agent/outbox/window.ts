/** Most chunks under way: hides the round trip to a distant log and bounds memory to a few MiB. */
export const MOST_IN_FLIGHT = 8;
/** So many acknowledgements are made durable together, or what came in so long a time: a note costs more than a chunk. */
const NOTED_TOGETHER = 8;
const NOTED_EVERY_MS = 250;
/** A round trip below this means that the link has room, above the other that chunks wait for each other. */
const QUICK_MS = 500;
const SLOW_MS = 2_000;

/**
 * The next number of chunks under way: one more after a quick acknowledgement, half after a slow one. On a slow link a
 * chunk must not wait behind others until its request times out.
 */
export function nextWindow(window: number, roundTripMs: number): number {
  if (roundTripMs > SLOW_MS) return Math.max(1, Math.floor(window / 2));
  return roundTripMs < QUICK_MS ? Math.min(MOST_IN_FLIGHT, window + 1) : window;
}

export interface WindowedSend {
  /** Sequences of the first chunks, acknowledged earlier. */
  readonly known: readonly number[];
  /** Chunks in all. */
  readonly count: number;
  /** Sends a chunk; its sequence in the log. */
  readonly send: (index: number) => Promise<number>;
  /** Makes further sequences durable, in order; is not called again before it has ended. */
  readonly note: (seqs: readonly number[]) => Promise<void>;
  readonly signal: AbortSignal;
  readonly monotonicMs: () => number;
}

/**
 * Sends the chunks that are not known yet, several at a time. Acknowledgements are noted in the order of the chunks and
 * in batches: what comes while one batch is made durable goes into the next. A crash loses the notes of some chunks,
 * which are then sent again under the same ids.
 *
 * @returns all sequences and how many of them are durable; undefined once the signal aborted. Throws the first failure
 *   of a send or a note, after what was under way has ended and what could be noted is.
 */
export async function sendWindowed(options: WindowedSend): Promise<{ seqs: number[]; noted: number } | undefined> {
  return new Sending(options).run();
}

class Sending {
  readonly #options: WindowedSend;
  readonly #seqs: (number | undefined)[];
  #next: number;
  /** Chunks, from the first, whose sequences are durable. */
  #noted: number;
  #inFlight = 0;
  /** What the link can bear is known after the first answer; every attempt begins so. */
  #window = 1;
  #noting: Promise<void> | undefined;
  #failure: { error: unknown } | undefined;
  #mayNote = true;
  /** When the last note was begun. */
  #notedAtMs: number;
  #wake: () => void = () => undefined;

  constructor(options: WindowedSend) {
    this.#options = options;
    this.#seqs = [...options.known];
    this.#next = this.#noted = options.known.length;
    this.#notedAtMs = options.monotonicMs();
  }

  async run(): Promise<{ seqs: number[]; noted: number } | undefined> {
    const { signal, count } = this.#options;
    const wake = (): void => this.#wake();
    signal.addEventListener("abort", wake);
    try {
      while (!signal.aborted) {
        while (this.#failure === undefined && this.#inFlight < this.#window && this.#next < count) this.#start();
        if (this.#inFlight === 0) break;
        await new Promise<void>((resolve) => (this.#wake = resolve));
      }
      // What is under way at an abort may take long to fail: nobody waits for it, and nothing more is noted.
      await this.#settleNotes();
      // Whatever else failed, what was acknowledged need not be sent again.
      if (this.#failure !== undefined) this.#note(true);
      await this.#settleNotes();
    } finally {
      signal.removeEventListener("abort", wake);
    }
    if (signal.aborted) return undefined;
    if (this.#failure !== undefined) throw this.#failure.error;
    return { seqs: this.#prefix(0), noted: this.#noted };
  }

  async #settleNotes(): Promise<void> {
    while (this.#noting !== undefined) await this.#noting;
  }

  #start(): void {
    const index = this.#next++;
    const startMs = this.#options.monotonicMs();
    this.#inFlight++;
    void this.#options
      .send(index)
      .then((seq) => {
        this.#seqs[index] = seq;
        this.#window = nextWindow(this.#window, this.#options.monotonicMs() - startMs);
        this.#note();
      })
      .catch((error: unknown) => (this.#failure ??= { error }))
      .finally(() => {
        this.#inFlight--;
        this.#wake();
      });
  }

  /** Sequences from a chunk on, up to the first that is not acknowledged. */
  #prefix(from: number): number[] {
    const seqs: number[] = [];
    for (let i = from; this.#seqs[i] !== undefined; i++) seqs.push(this.#seqs[i] as number);
    return seqs;
  }

  #note(isLastChance = false): void {
    const { count, signal, note, monotonicMs } = this.#options;
    const seqs = this.#prefix(this.#noted);
    // The last ones become durable together with the mark of the commit.
    const isLast = this.#noted + seqs.length === count && this.#noting === undefined;
    if (this.#noting !== undefined || seqs.length === 0 || isLast || signal.aborted || !this.#mayNote) return;
    const nowMs = monotonicMs();
    if (!isLastChance && seqs.length < NOTED_TOGETHER && nowMs - this.#notedAtMs < NOTED_EVERY_MS) return;
    this.#notedAtMs = nowMs;
    this.#noting = note(seqs)
      .then(() => void (this.#noted += seqs.length))
      .catch((error: unknown) => {
        // What follows half a line would be lost with it: the file is whole again at the next upload.
        this.#mayNote = false;
        this.#failure ??= { error };
      })
      .finally(() => {
        this.#noting = undefined;
        this.#note();
        this.#wake();
      });
  }
}
