/** Part of a window, for what was asked for and has not come yet. */
export interface WindowShare {
  /** Gives so many bytes back, or all that is left of the share. Gives back nothing twice. */
  free(bytes?: number): void;
}

interface Waiting {
  readonly bytes: number;
  readonly admit: () => void;
}

/**
 * What a connection may have asked for and not received yet. A server drops a client for which too much waits, and a process that is
 * busy for a moment receives nothing meanwhile: however many readers there are, no more than the window is under way. Whoever has a share
 * gives it back when the answer is there, without waiting for anybody, so the next in line always gets its turn.
 */
export class ReadWindow {
  #freeBytes: number;
  readonly #waiting: Waiting[] = [];

  constructor(private readonly maxBytes: number) {
    this.#freeBytes = maxBytes;
  }

  /** A share of so many bytes, of the whole window at most, once it is this caller's turn. */
  async take(bytes: number): Promise<WindowShare> {
    const due = Math.min(bytes, this.maxBytes);
    if (this.#waiting.length > 0 || due > this.#freeBytes) {
      await new Promise<void>((admit) => this.#waiting.push({ bytes: due, admit }));
    } else {
      this.#freeBytes -= due;
    }
    let left = due;
    return {
      free: (some = left) => {
        const freed = Math.min(some, left);
        left -= freed;
        this.#giveBack(freed);
      },
    };
  }

  #giveBack(bytes: number): void {
    this.#freeBytes += bytes;
    for (let next = this.#waiting[0]; next !== undefined && next.bytes <= this.#freeBytes; next = this.#waiting[0]) {
      this.#waiting.shift();
      // Before it goes on, so that nobody else takes it.
      this.#freeBytes -= next.bytes;
      next.admit();
    }
  }
}
