/** Work that takes much memory, one after the other in the order in which it came. */
export class Turns {
  #last: Promise<unknown> = Promise.resolve();

  /** Waits for all that came before, however it ended, and does the work. */
  take<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work);
    this.#last = turn.catch(() => undefined);
    return turn;
  }
}
