import type { Lease } from "#proto/shoal/v1/device.js";

/** Devices of the fleet for each one of a round from which on reading those of the round alone is cheaper than reading all. */
const WORTH_LISTING = 4;
/** Devices that are asked for one by one at most: all at once, and a request each. */
const MOST_SINGLY = 500;

type Term = Pick<Lease, "renewedAtMs" | "expiresAtMs">;

/**
 * The fleet's leases as this replica's wake-ups have told of them. They may lag behind the store: enough to choose how to read,
 * and to doubt that devices have vanished; nothing is decided on what they say of a device.
 */
export class FleetHints {
  readonly #leases = new Map<string, Term>();

  /** Notes a lease. @returns whether it begins, or begins anew after it was over. */
  note(device: string, { renewedAtMs, expiresAtMs }: Term): boolean {
    const before = this.#leases.get(device);
    this.#leases.set(device, { renewedAtMs, expiresAtMs });
    return before === undefined || renewedAtMs > before.expiresAtMs;
  }

  forget(device: string): void {
    this.#leases.delete(device);
  }

  /** Whether so many devices are few of the fleet, as far as is known. */
  areFew(devices: number): boolean {
    return devices <= MOST_SINGLY && devices * WORTH_LISTING < this.#leases.size;
  }

  /**
   * The newest renewal of any lease there is, Unix milliseconds; 0 without any. Not the newest that ever was: a registry whose
   * clock ran ahead may have written that.
   */
  lastRenewalMs(): number {
    let latest = 0;
    for (const { renewedAtMs } of this.#leases.values()) latest = Math.max(latest, renewedAtMs);
    return latest;
  }
}
