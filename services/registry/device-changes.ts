import type { ResourceStore } from "#common/ports/resource-store.js";
import type { Device } from "#proto/shoal/v1/device.js";

/** Lost races after which a change is given up. */
const MAX_ATTEMPTS = 16;

export type DeviceChanged =
  { ok: true; device: Device } | { ok: false; reason: "NotFound" } | { ok: false; reason: "Contended" };

/**
 * Reads a device, changes it and writes it back by compare-and-set, again from a fresh read after a lost race.
 * @param change gives the next device, or undefined if the present one is right
 */
export async function changeDevice(
  store: ResourceStore,
  name: string,
  change: (device: Device) => Device | undefined,
): Promise<DeviceChanged> {
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    const device = await store.get("Device", name);
    if (device === undefined) return { ok: false, reason: "NotFound" };
    const next = change(device);
    if (next === undefined) return { ok: true, device };
    const written = await store.update("Device", next);
    if (written.ok) return { ok: true, device: written.resource };
    if (written.reason === "NotFound") return { ok: false, reason: "NotFound" };
  }
  return { ok: false, reason: "Contended" };
}
