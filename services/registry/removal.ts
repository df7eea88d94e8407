import { newMeta } from "#common/domain/resources.js";
import type { Device } from "#proto/shoal/v1/device.js";

const REMOVED = "shoal.dev/removed";

/** Whether the device's removal has begun: from then on it neither joins, nor beats, nor reads. */
export function isRemoved(device: Device): boolean {
  return device.metadata?.annotations[REMOVED] !== undefined;
}

/** The device with its removal begun; undefined if it has. */
export function markRemoved(device: Device): Device | undefined {
  if (isRemoved(device)) return undefined;
  const metadata = device.metadata ?? newMeta("");
  return { ...device, metadata: { ...metadata, annotations: { ...metadata.annotations, [REMOVED]: "true" } } };
}
