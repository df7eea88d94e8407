/** Share of a new measurement in the average. */
const WEIGHT = 0.3;
/** Shorter transfers measure the round trip, not the link. */
const LEAST_BYTES = 64 * 1024;

/** Moving average of a direction's bytes a second; 0 while nothing was measured. */
export class LinkSpeed {
  #bytesPerSecond = 0;

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  add(bytes: number, ms: number): void {
    if (bytes < LEAST_BYTES || ms <= 0) return;
    const measured = (bytes * 1000) / ms;
    this.#bytesPerSecond =
      this.#bytesPerSecond === 0 ? measured : (1 - WEIGHT) * this.#bytesPerSecond + WEIGHT * measured;
  }
}
